"""Compares our kernels with other implementations: timed on this machine's accelerator, or
scheduled for a described TPU.

    python -m pipelines.benchmark_kernels --op=attention --shapes=all \\
        --against=xla,flash,splash,tokamax
    python -m pipelines.benchmark_kernels --static=v5e,v6e --shapes=encoder_large,decoder \\
        --chart=attention.svg
    python -m pipelines.benchmark_kernels --static=v5e --shapes=encoder_large --tune

Without an accelerator, or with `--static`, times are those that the TPU compiler schedules for the
chips named: the larger of cycles over clock and memory traffic over bandwidth, tile padding
included. They are not measured on a chip. libtpu is needed: pip install 'm3ae-tpu[compile-tpu]'.
For some operations the compiler's replay aborts, has no cycles, or takes hours (long loops of
XLA's). The table then gives a lower bound: the memory traffic at the batch of a training step.

`--tune` searches block sizes of the attention kernels by scheduled time. It starts from those in
use, changes one setting at a time, and writes faster ones to the kernels' table,
`kernels/attention/block_sizes.json`. It takes 10 to 60 minutes for a shape.

All inputs are bfloat16, and the same for every implementation: attention goes from the packed
projection to the attention's output, cross-entropy from tokens and float32 parameters to the mean
loss. Splits, transposes and padding count for the implementation that needs them. Figures are for
one row of the batch. Scheduled attention is the cost of one more row, without program start (at
small batches XLA keeps its scores in VMEM, which a training step has no room for); all other
figures are those of 64 rows, or of `--batch`, divided by their number.
"""

import json
import os
import pathlib
from typing import Literal

from m3ae_tpu.command_line import run_program
from m3ae_tpu.errors import UserError, require
from m3ae_tpu.files import atomic_write, require_writable_file
from m3ae_tpu.kernels.chips import REPLAYED
from m3ae_tpu.option_flags import define_flag

_DEFAULT_SHAPE = {"attention": "encoder_large", "cross_entropy": "text_head"}

_OP = define_flag("op", Literal["attention", "cross_entropy"], "attention", "Operation to measure.")
_SHAPES = define_flag(
    "shapes",
    list,
    [],
    "Shapes to measure, by name, or `all`; by default encoder_large or, for cross_entropy, "
    "text_head. A wrong name lists the right ones.",
)
_AGAINST = define_flag(
    "against",
    list,
    ["xla"],
    "Baselines: xla, flash, splash, tokamax, cudnn, hopper; --against= for none.",
)
_STATIC = define_flag(
    "static",
    list,
    [],
    f"TPUs to schedule for, of {', '.join(REPLAYED)}; by default the accelerator is timed or, "
    "without one, v5e is scheduled.",
)
_MASKED = define_flag("masked", bool, False, "Give attention a mask of valid keys.")
_BATCH = define_flag("batch", int, 64, "Rows of a timed batch.", at_least=1)
_ROUNDS = define_flag(
    "rounds", int, 30, "Rounds of timing, of which the table has the medians.", at_least=2
)
_TUNE = define_flag(
    "tune", bool, False, "Search block sizes of attention and write them to the kernels' table."
)
_JSON = define_flag("json", pathlib.Path, None, "File to write the figures to.")
_CHART = define_flag("chart", pathlib.Path, None, "SVG file to draw the figures to.")


def main(argv: list[str]) -> None:
    """Checks the flags, measures, and prints and writes the figures."""
    _check_files_and_chips(argv)
    if _STATIC.value:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from m3ae_tpu.measure import kernel_benchmark as benchmark

    operation, chips = _OP.value, _STATIC.value or benchmark.default_chips()
    shapes = _SHAPES.value or [_DEFAULT_SHAPE[operation]]
    shapes = list(benchmark.SHAPES[operation]) if shapes == ["all"] else shapes
    against = _AGAINST.value
    _check_names("shapes", shapes, benchmark.SHAPES[operation])
    _check_names("against", against, benchmark.AGAINST[operation])
    if chips:
        _check_scheduled(against)
    require(not _TUNE.value or bool(chips), f"--tune needs --static, of {', '.join(REPLAYED)}.")
    options = benchmark.Options(
        operation=operation,
        shapes=shapes,
        names=["ours", *against],
        chips=chips,
        is_masked=_MASKED.value,
        batch=_BATCH.value,
        rounds=_ROUNDS.value,
    )
    if _TUNE.value:
        benchmark.tune(options)
        return
    lines = benchmark.run(options)
    if _JSON.value:
        atomic_write(_JSON.value, json.dumps(lines, indent=2) + "\n")
    if _CHART.value:
        atomic_write(_CHART.value, benchmark.chart(options, lines))


def _check_files_and_chips(argv: list[str]) -> None:
    if len(argv) > 1:
        raise UserError(
            f"{argv[1]!r} is not a flag. See python -m pipelines.benchmark_kernels --help."
        )
    for flag in (_JSON, _CHART):
        if flag.value:
            require_writable_file(f"--{flag.name}", flag.value)
    require(
        not _TUNE.value or _OP.value == "attention",
        f"--tune is for --op=attention; --op = {_OP.value} has no block sizes.",
    )
    _check_names("static", _STATIC.value, REPLAYED)


def _check_names(flag: str, names, choices) -> None:
    for name in names:
        require(name in choices, f"--{flag}: {name!r} is not one of {', '.join(choices)}.")


def _check_scheduled(against: list[str]) -> None:
    import importlib.util

    for name in ("cudnn", "hopper"):
        require(
            name not in against,
            f"--against = {name} runs on GPUs and cannot be scheduled for TPUs. Leave it out.",
        )
    require(
        importlib.util.find_spec("libtpu") is not None,
        "libtpu is missing. Install it: pip install 'm3ae-tpu[compile-tpu]'",
    )


def run() -> None:
    """Entry point of the installed command `m3ae-benchmark-kernels`."""
    run_program(main)


if __name__ == "__main__":
    run()
