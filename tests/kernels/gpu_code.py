"""Reads what the assembler made of a Hopper kernel: registers, spills, loops, and the time that
its instructions take to issue.
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
_LEAST_LOOP = 60
"""Instructions of the shortest loop that computes; shorter ones wait."""
_INSTRUCTION = re.compile(
    r"\s*[-\d:YB]+:\w*\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)(.*)"
)
_LABEL = re.compile(r"\s*\.(L_x_\d+):")


class Kernel(NamedTuple):
    """A compiled kernel, by what its assembler and disassembler say."""

    registers: int
    spilled_bytes: int
    shared_bytes: int
    loops: list[int]
    """Instructions of each loop that computes."""

    def issue_microseconds(self, heads: int, tiles: int) -> float:
        """Returns the time to issue the loops' instructions of a row, each loop run once a tile."""
        return sum(self.loops) * tiles * _WARPS * heads / _ISSUED_PER_MICROSECOND


def _read(folder: pathlib.Path, name: str) -> Kernel:
    def text(ending: str) -> str:
        (file,) = folder.glob(f"{name}_*.{ending}")
        return file.read_text()

    def number(pattern: str, text: str) -> int:
        found = re.search(pattern, text)
        assert found is not None, pattern
        return int(found[1])

    assembled = text("ptxas")
    names, loops, labels = [], [], {}
    for line in text("sass_ctrl").splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(names)
        elif instruction := _INSTRUCTION.match(line):
            names.append(instruction[1])
            target = re.search(r"L_x_\d+", instruction[2])
            if instruction[1] == "BRA" and target and target[0] in labels:
                loops.append((labels[target[0]], len(names)))
    loops = [loop for loop in loops if loop[1] - loop[0] > _LEAST_LOOP]
    inner = [
        (start, stop)
        for start, stop in loops
        if not any(a >= start and b <= stop and (a, b) != (start, stop) for a, b in loops)
    ]
    return Kernel(
        number(r"Used (\d+) registers", assembled),
        number(r"(\d+) bytes spill stores", assembled),
        number(r"smem_scratch_bytes=(\d+)", text("resources.txt")),
        [stop - start for start, stop in inner],
    )


def compile_attention(
    folder: pathlib.Path, tokens: int, num_heads: int, head_dim: int, *, is_masked: bool
) -> tuple[Kernel, Kernel]:
    """Returns the forward and the backward kernel of attention, compiled for an H100.

    It does so in another process: Mosaic GPU reads where to write its files when it is loaded.
    """
    dumps = ("PTX", "PTXAS", "RESOURCES", "SASS")
    environment = {
        **os.environ,
        "PATH": f"{BINARIES}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(pathlib.Path(__file__).parents[2]),
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
