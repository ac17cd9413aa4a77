"""Reads what the assembler made of a Hopper kernel: registers, spills, shared memory, and the time
that its instructions take to issue.
"""

import os
import pathlib
import re
import subprocess
import sys
import sysconfig
from typing import NamedTuple

import jax
import jax.numpy as jnp

BINARIES = pathlib.Path(sysconfig.get_path("purelib")) / "nvidia" / "cu13" / "bin"
"""Folder into which the packages of NVIDIA's assembler and disassembler put programs."""
_WARPS = 4
_ISSUED_PER_MICROSECOND = 4 * 132 * 1755
"""Instructions of warps that an H100 issues: 132 multiprocessors, 4 a clock each, 1.755 GHz."""
_INSTRUCTION = re.compile(
    r"\s*[-\d:YB]+:\w*\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*)"
)
_LABEL = re.compile(r"\s*\.(L_x_\d+):")


class Kernel(NamedTuple):
    """A compiled kernel, by what its assembler and disassembler say."""

    registers: int
    spilled_bytes: int
    shared_bytes: int
    instructions: list[int]
    """Those outside of loops, in loops over tiles, in loops over parts inside of these."""

    def issued(self, tiles: int, parts: int) -> int:
        """Returns the instructions that a warp issues, all of them, if it never waits.

        Args:
            tiles: Turns of the outer loops.
            parts: Turns of the inner loops.
        """
        turns = 1, tiles, tiles * parts
        return sum(count * turn for count, turn in zip(self.instructions, turns, strict=True))


def issue_microseconds(instructions: int, heads: int) -> float:
    """Returns the time in which an H100 issues the instructions of a row, given those of a warp."""
    return instructions * _WARPS * heads / _ISSUED_PER_MICROSECOND


def _instructions(disassembly: str) -> list[int]:
    count, loops, labels = 0, [], {}
    for line in disassembly.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = count
        elif instruction := _INSTRUCTION.match(line):
            count += 1
            target = re.search(r"L_x_\d+", instruction[2])
            if instruction[1] == "BRA" and target and target[0] in labels:
                loops.append(range(labels[target[0]], count))
            if instruction[1] == "EXIT":
                break  # What follows repeats waits.
    depths = [sum(place in loop for loop in loops) for place in range(count)]
    assert max(depths) <= 2
    return [depths.count(depth) for depth in range(3)]


def _read(folder: pathlib.Path, name: str) -> Kernel:
    def text(ending: str) -> str:
        (file,) = folder.glob(f"{name}_*.{ending}")
        return file.read_text()

    def number(pattern: str, text: str) -> int:
        found = re.search(pattern, text)
        assert found is not None, pattern
        return int(found[1])

    assembled = text("ptxas")
    return Kernel(
        number(r"Used (\d+) registers", assembled),
        number(r"(\d+) bytes spill stores", assembled),
        number(r"smem_scratch_bytes=(\d+)", text("resources.txt")),
        _instructions(text("sass_ctrl")),
    )


def compile_attention(
    folder: pathlib.Path, tokens: int, num_heads: int, head_dim: int, *, is_masked: bool
) -> tuple[Kernel, Kernel]:
    """Returns the forward and the backward kernel of attention, compiled for an H100.

    It does so in another process: Mosaic GPU reads where to write its files when it is loaded.
    """
    root = pathlib.Path(__file__).parents[2]
    dumps = ("PTX", "PTXAS", "RESOURCES", "SASS")
    environment = {
        **os.environ,
        "PATH": f"{BINARIES}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]),
        "MOSAIC_GPU_DUMP_TO": str(folder),
        **{f"MOSAIC_GPU_DUMP_{name}": "1" for name in dumps},
    }
    arguments = [tokens, num_heads, head_dim, int(is_masked)]
    command = [sys.executable, __file__, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return _read(folder, "attention_forward"), _read(folder, "attention_backward")


def _compile(tokens: int, num_heads: int, head_dim: int, is_masked: int) -> None:
    from m3ae_tpu.kernels.attention import attention
    from m3ae_tpu.measure import gpu_compiler

    def both(qkv, dout, is_valid):
        def function(qkv):
            mask = is_valid if is_masked else None
            return attention(qkv, mask, num_heads, implementation="hopper")

        out, pull_back = jax.vjp(function, qkv)
        return out, *pull_back(dout)

    def array(*sizes, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct((2, tokens, *sizes), dtype)

    width = num_heads * head_dim
    shapes = array(3 * width), array(width), array(dtype=jnp.bool)
    gpu_compiler.compile_for("h100", both, *shapes)


if __name__ == "__main__":
    _compile(*map(int, sys.argv[1:]))
