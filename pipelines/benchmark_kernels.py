"""Compares attention's implementations by what the TPU compiler schedules for them: no TPU is needed.

    python -m pipelines.benchmark_kernels
    python -m pipelines.benchmark_kernels --chips=v5e,v6e --shapes=encoder_large,decoder --json=attention.json

Needs libtpu (`pip install 'm3ae-tpu[compile-tpu]'`). Time is that of one more row of the batch in bfloat16, without
a mask, everything from the packed projection to the attention's output counted: the larger of scheduled cycles and
HBM traffic. Nothing here was measured on a chip. XLA is metered with queries, keys and values apart, as the
compiler's replay cannot follow the split; the split's traffic is added. At these small batches XLA keeps its scores
in VMEM, which it cannot at large ones: its figures are better than what a training step sees. Where the replay
cannot count an operation, the table says so.
"""

import json
import os
import pathlib
from typing import TYPE_CHECKING, Any

from absl import flags

from m3ae_tpu.config import ConfigError, require
from m3ae_tpu.files import write_whole
from m3ae_tpu.launch_flags import run_program

if TYPE_CHECKING:
    from m3ae_tpu.kernels.shapes import AttentionShape

_CHIPS = flags.DEFINE_list("chips", ["v5e"], "Chips to compile for: v5e, v5p, v6e.")
_SHAPES = flags.DEFINE_list("shapes", ["encoder_large"], "Named shapes of kernels/shapes.py, or `all`.")
_AGAINST = flags.DEFINE_list("against", ["xla"], "What to compare with: xla, or nothing (--against=).")
_JSON = flags.DEFINE_string("json", None, "File to write the figures to.")

_BATCHES = (16, 32)
"""Multiples of the rows of every kernel's program, times two cores."""


def measure(chip: str, shape: "AttentionShape", implementation: str, *, backward: bool) -> dict[str, Any]:
    """Returns the scheduled cost of a row: `us`, `bound`, `cycles`, `hbm_bytes`."""
    import jax
    import jax.numpy as jnp

    from m3ae_tpu.kernels.attention import attention
    from m3ae_tpu.kernels.scheduled_cost import Cost, row_cost

    def make(batch: int):
        def array(*sizes: int):
            return jax.ShapeDtypeStruct((batch, shape.tokens, *sizes), jnp.bfloat16)

        if implementation == "xla":
            apart = array(shape.num_heads, shape.head_dim)
            inputs, out = [apart] * 3, apart
        else:
            inputs, out = [array(3 * shape.width)], array(shape.width)

        def forward(*inputs):
            if implementation == "xla":
                return jax.nn.dot_product_attention(*inputs, implementation="xla")
            return attention(inputs[0], None, shape.num_heads, implementation="tpu")

        def both(dout, *inputs):
            out, pull_back = jax.vjp(forward, *inputs)
            return out, *pull_back(dout)

        return (both, [out, *inputs]) if backward else (forward, inputs)

    cost = row_cost(chip, make, _BATCHES)
    if implementation == "xla":
        # Read and written once: on the way in, and the gradients on the way out. Rows of 16 tokens a tile.
        split = 2 * 3 * shape.width * 2 * -(-shape.tokens // 16) * 16 * (1 + backward)
        cost = Cost(chip, cost.cycles, cost.hbm_bytes + split)
    names = ("us", "bound", "cycles", "hbm_bytes")
    return {name: getattr(cost, name) for name in names}


def benchmark(chips: list[str], shapes: list[str], implementations: list[str]) -> list[dict[str, Any]]:
    """Returns a line for every chip, shape, direction and implementation; `not_counted` where the replay fails.

    Raises:
        ConfigError: a name that is not known, or libtpu is missing.
    """
    from m3ae_tpu.kernels import scheduled_cost
    from m3ae_tpu.kernels.shapes import ATTENTION

    shapes = list(ATTENTION) if shapes == ["all"] else shapes
    metered = [name for name, chip in scheduled_cost.CHIPS.items() if chip.clock_hz]
    for flag, given, known in (
        ("chips", chips, metered),
        ("shapes", shapes, list(ATTENTION)),
        ("against", implementations, ["tpu", "xla"]),
    ):
        for name in given:
            require(name in known, f"--{flag}: {name!r} is not one of {', '.join(known)}.")
    try:
        scheduled_cost.prepare(replay=True)
    except ModuleNotFoundError as error:
        raise ConfigError("libtpu is missing. Install it: pip install 'm3ae-tpu[compile-tpu]'") from error
    lines = []
    for chip in chips:
        for name in shapes:
            for backward in (False, True):
                for implementation in implementations:
                    line = {
                        "chip": chip,
                        "shape": name,
                        "backward": backward,
                        "implementation": implementation,
                    }
                    try:
                        figures = measure(chip, ATTENTION[name], implementation, backward=backward)
                    except scheduled_cost.NotCountedError as error:
                        figures = {"not_counted": str(error)}
                    lines.append(line | figures)
    return lines


def _show(lines: list[dict[str, Any]]) -> None:
    import rich
    from rich.table import Table

    table = Table(title="attention: microseconds a row, scheduled by the compiler (bfloat16)")
    for name in ("chip", "shape", "direction", "implementation", "us", "bound", "cycles", "HBM kB"):
        table.add_column(name, justify="right" if name in ("us", "cycles", "HBM kB") else "left")
    table.add_column("")
    longest = max((line["us"] for line in lines if "us" in line), default=1.0)
    for line in lines:
        direction = "forward + backward" if line["backward"] else "forward"
        names = line["chip"], line["shape"], direction, line["implementation"]
        if "not_counted" in line:
            table.add_row(*names, "?", "", "", "", line["not_counted"])
            continue
        kilobytes = f"{line['hbm_bytes'] / 1e3:.0f}"
        figures = f"{line['us']:.2f}", line["bound"], f"{line['cycles']:.0f}", kilobytes
        bar = "█" * max(1, round(24 * line["us"] / longest))
        table.add_row(*names, *figures, bar)
    rich.print(table)


def main(argv: list[str]) -> None:
    """Prints the table, and writes the figures where `--json` says."""
    if len(argv) > 1:
        raise ConfigError(f"{argv[1]!r} is no flag. See python -m pipelines.benchmark_kernels --help.")
    os.environ["JAX_PLATFORMS"] = "cpu"
    lines = benchmark(_CHIPS.value, _SHAPES.value, ["tpu", *filter(None, _AGAINST.value)])
    _show(lines)
    if _JSON.value:
        write_whole(pathlib.Path(_JSON.value), json.dumps(lines, indent=2) + "\n")


def run() -> None:
    """Entry point of the installed command `m3ae-benchmark-kernels`."""
    run_program(main)


if __name__ == "__main__":
    run()
