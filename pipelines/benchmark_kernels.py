"""Compares our kernels with other implementations: timed on the accelerator that is here, or
scheduled for a TPU.

    python -m pipelines.benchmark_kernels --op=attention --shapes=all
    --against=xla,flash,splash,tokamax python -m pipelines.benchmark_kernels --static=v5e,v6e
    --shapes=encoder_large,decoder --chart=attention.svg python -m pipelines.benchmark_kernels
    --static=v5e --shapes=encoder_large --tune

Without an accelerator, or with `--static`, time is what the TPU compiler schedules for the chips
named: the larger of cycles and of memory traffic, which counts tile padding. Nothing of it was
measured on a chip. It needs libtpu (`pip install 'm3ae-tpu[compile-tpu]'`). The compiler's replay
aborts at some operations, has no cycles for some, and takes hours for long loops of XLA's: then
only memory traffic is known, at the batches of a training step, and the table says that it takes at
least so long.

`--tune` searches block sizes of the attention kernels from those in use, one setting at a time, by
scheduled time, and writes the best into `kernels/block_sizes.json`, which the kernels look into. It
takes 10 to 60 minutes for a shape.

All is bfloat16, from and to the same arrays: attention from the packed projection to the
attention's output, with splits, transposes and padding counted to whom needs them; cross-entropy
from tokens and float32 parameters to the mean loss. Figures are for one row of the batch: scheduled
attention for one more row (at small batches XLA keeps its scores in VMEM, which it cannot in a
training step), all others for one of 64 rows or of `--batch`.
"""

import itertools
import json
import os
import pathlib
from typing import Any

from absl import flags

from m3ae_tpu.command_line import run_program
from m3ae_tpu.errors import UserError, require
from m3ae_tpu.files import atomic_write

_OP = flags.DEFINE_enum("op", "attention", ["attention", "cross_entropy"], "Operation to measure.")
_SHAPES = flags.DEFINE_list(
    "shapes",
    [],
    "Named shapes of kernels/shapes.py, or `all`; none: the largest encoder, or the text head.",
)
_AGAINST = flags.DEFINE_list(
    "against", ["xla"], "Others: xla, flash, splash, tokamax, cudnn; --against= for none."
)
_STATIC = flags.DEFINE_list(
    "static", [], "Chips to schedule for: v5e, v5p, v6e; none: time on the device here."
)
_MASKED = flags.DEFINE_boolean(
    "masked", False, "Attention with a mask of valid keys, as pairs have."
)
_BATCH = flags.DEFINE_integer("batch", 64, "Rows of a timed batch.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 30, "Rounds of timing; medians are shown.", lower_bound=2)
_TUNE = flags.DEFINE_boolean(
    "tune", False, "Search block sizes of attention and write them into their table."
)
_JSON = flags.DEFINE_string("json", None, "File to write the figures to.")
_CHART = flags.DEFINE_string("chart", None, "SVG file to draw the figures to.")

type Line = dict[str, Any]
"""`device`, `shape`, `backward`, `implementation`; `us` and what explains it, `at_least` if that is
a lower bound; without a figure `reason`."""


def tune(shapes: dict[str, Any], chips: list[str], report) -> None:
    """Searches block sizes for every chip and shape, forward first; prints and enters each as it is
    found.
    """
    import datetime
    import importlib.metadata
    import importlib.resources

    import rich

    from m3ae_tpu.kernels import block_sizes, tuning
    from m3ae_tpu.measure.compiler_process import CompilerProcess

    path = pathlib.Path(str(importlib.resources.files("m3ae_tpu.kernels") / "block_sizes.json"))
    how = f"libtpu {importlib.metadata.version('libtpu')}, {datetime.datetime.now(datetime.UTC).date()}"
    compiler = CompilerProcess(replay=True, patience=_PATIENCE)
    for chip, shape, kernel in itertools.product(
        chips, shapes, ("attention_forward", "attention_backward")
    ):
        row = shapes[shape]
        what = f"{kernel} {shape} {chip}"
        start = block_sizes.blocks_for(kernel, block_sizes.CHIPS[chip], row.tokens, "bfloat16")
        job = (kernel, _case(row, kernel == "attention_backward"), chip)
        blocks, before, after, tries = tuning.hill_climb(
            start, _Search(compiler, job, what, report)
        )
        rich.print(f"{what}: {before:.3f} -> {after:.3f} us, {tries} tried")
        if blocks != start:
            source = (
                f"fewest scheduled cycles on {chip}, {row.tokens} tokens, {row.num_heads} heads of "
            )
            source += f"{row.head_dim}; {how}"
            table = tuning.with_row(
                json.loads(path.read_text()), kernel, chip, row.tokens, blocks, source
            )
            atomic_write(path, tuning.dumps(table))
            rich.print(f"  {blocks}, entered in {path}")
    compiler.close()


class _Search:
    """Measures block sizes in the compiler's process and reports how far the search is."""

    def __init__(self, compiler: Any, job: tuple, what: str, report):
        self._compiler, self._job, self._what, self._report = compiler, job, what, report
        self._tries, self._best = 0, float("inf")

    def __call__(self, blocks: Any) -> float | None:
        from m3ae_tpu.measure.compiler_process import ReplayFailedError
        from m3ae_tpu.measure.kernel_cost import scheduled_with

        self._tries += 1
        try:
            us = self._compiler.run(scheduled_with, blocks, *self._job)
        except ReplayFailedError:
            us = None
        self._best = self._best if us is None else min(us, self._best)
        self._report(f"{self._what}: {self._tries} tried, best {self._best:.3f} us")
        return us


_PATIENCE = 600
"""Seconds for one replay; the decoder's backward kernel takes minutes on a slow machine."""


def schedule(names: list[str], shapes: dict[str, Any], chips: list[str], report) -> list[Line]:
    """Returns a line for every chip, shape, direction and implementation, scheduled by the TPU
    compiler.
    """
    from m3ae_tpu.measure.compiler_process import CompilerProcess, ReplayFailedError
    from m3ae_tpu.measure.hlo_text import NotCountedError
    from m3ae_tpu.measure.kernel_cost import scheduled, traffic
    from m3ae_tpu.measure.tpu_schedule import Cost

    lines = []
    replaying, plain = (
        CompilerProcess(replay=True, patience=_PATIENCE),
        CompilerProcess(replay=False),
    )
    for chip, shape, backward, name in itertools.product(chips, shapes, (False, True), names):
        report(f"{name} {shape} {chip} {_DIRECTION[backward]}")
        line = {"device": chip, "shape": shape, "backward": backward, "implementation": name}
        job = (name, _case(shapes[shape], backward), chip)
        try:
            try:
                cost = replaying.run(scheduled, *job)
                line |= {key: getattr(cost, key) for key in ("us", "bound", "cycles", "hbm_bytes")}
            except (NotCountedError, ReplayFailedError) as error:
                cost = Cost(chip, 0, plain.run(traffic, *job))
                line |= {"us": cost.hbm_us, "hbm_bytes": cost.hbm_bytes, "at_least": True}
                line |= {"reason": str(error)}
        except (NotImplementedError, ModuleNotFoundError, ValueError) as error:
            line |= {"reason": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
        lines.append(line)
    replaying.close()
    plain.close()
    return lines


def _case(shape: Any, backward: bool) -> Any:
    from m3ae_tpu.measure.kernel_cost import Case

    return Case(shape, backward, masked=_MASKED.value)


def time(names: list[str], shapes: dict[str, Any], report) -> list[Line]:
    """Returns a line for every shape, direction and implementation, timed on the device that is
    here.
    """
    import jax

    from m3ae_tpu.measure.kernel_cost import PEAKS, timed

    device = jax.devices()[0].device_kind
    peak_flops, peak_bytes = PEAKS.get(device, (None, None))
    lines = []
    for shape, backward in itertools.product(shapes, (False, True)):
        report(f"{shape} {device} {_DIRECTION[backward]}")
        timings = timed(names, _case(shapes[shape], backward), _BATCH.value, rounds=_ROUNDS.value)
        for name, timing in timings.items():
            line = {"device": device, "shape": shape, "backward": backward, "implementation": name}
            if isinstance(timing, str):
                lines.append(line | {"reason": timing})
                continue
            rates = {
                "flops": timing.flops / timing.us * 1e6,
                "bytes": timing.bytes / timing.us * 1e6,
            }
            if peak_flops and peak_bytes:
                rates |= {"of_peak_flops": rates["flops"] / peak_flops}
                rates |= {"of_peak_bytes": rates["bytes"] / peak_bytes}
            lines.append(line | {"us": timing.us, "spread": timing.spread, **rates})
    return lines


_DIRECTION = {False: "forward", True: "both"}
_WIDE = 100
"""Columns of a terminal that has room for bars."""


def show(operation: str, lines: list[Line], how: str) -> None:
    """Prints a table for every device, and what has no figure or only a bound below it."""
    import rich
    from rich.table import Table

    has_bars = rich.get_console().width >= _WIDE
    for device, group in _by(lines, "device"):
        table = Table(title=f"{operation}, bfloat16, {device}, {how}: a row", title_justify="left")
        is_scheduled = any("hbm_bytes" in line for line in group)
        figures = ("cycles", "HBM kB") if is_scheduled else ("TFLOP/s", "GB/s", "±")
        for name in ("shape", "direction", "implementation"):
            table.add_column(name, no_wrap=True)
        for name in ("us", *figures):
            table.add_column(name, justify="right", no_wrap=True)
        if has_bars:
            table.add_column("", width=20)
        for cell in _by(group, "shape", "backward"):
            longest = max((line["us"] for line in cell[1] if "us" in line), default=1.0)
            for number, line in enumerate(cell[1]):
                head = (line["shape"], _DIRECTION[line["backward"]]) if number == 0 else ("", "")
                bar = "█" * max(1, round(20 * line["us"] / longest)) if "us" in line else ""
                row = (*head, line["implementation"], _time(line), *_figures(line, is_scheduled))
                style = "bold" if line["implementation"] == "ours" else ""
                table.add_row(*row, *([bar] if has_bars else []), style=style)
            table.add_section()
        rich.print(table)
    rich.print("both: forward and backward, in one program.")
    for reason, group in _by([line for line in lines if "reason" in line], "reason"):
        who = ", ".join(
            dict.fromkeys(f"{line['implementation']} ({line['device']})" for line in group)
        )
        rich.print(f"{who}: {reason}")


def _time(line: Line) -> str:
    if "us" not in line:
        return "?"
    return f"{'≥ ' if line.get('at_least') else ''}{line['us']:.2f}"


def _figures(line: Line, is_scheduled: bool) -> list[str]:
    if is_scheduled:
        cycles = f"{line['cycles']:,.0f}" if "cycles" in line else ""
        return [cycles, f"{line['hbm_bytes'] / 1e3:,.0f}" if "hbm_bytes" in line else ""]
    if "us" not in line:
        return ["", "", ""]
    cells = [f"{line['flops'] / 1e12:.1f}", f"{line['bytes'] / 1e9:,.0f}"]
    if "of_peak_flops" in line:
        cells = [
            f"{cell} ({line[share]:.0%})"
            for cell, share in zip(cells, ("of_peak_flops", "of_peak_bytes"), strict=True)
        ]
    return [*cells, f"{line['spread']:.0%}"]


def _by(lines: list[Line], *keys: str) -> list[tuple[Any, list[Line]]]:
    """Groups lines by what they have in common, in their order."""
    groups: dict[Any, list[Line]] = {}
    for line in lines:
        value = tuple(line[key] for key in keys)
        groups.setdefault(value[0] if len(keys) == 1 else value, []).append(line)
    return list(groups.items())


def chart(operation: str, lines: list[Line], how: str) -> str:
    """Draws the figures as horizontal bars, an SVG document; each group has a scale of its own."""
    rows, y = [], 48
    for (device, shape, backward), group in _by(lines, "device", "shape", "backward"):
        title = f"{shape}, {'forward and backward' if backward else 'forward'}, {device}"
        rows.append(f'<text x="16" y="{y + 4}" font-weight="bold">{title}</text>')
        y += 14
        longest = max((line["us"] for line in group if "us" in line), default=1.0)
        for line in group:
            is_ours = line["implementation"] == "ours"
            rows.append(
                f'<text x="104" y="{y + 13}" text-anchor="end">{line["implementation"]}</text>'
            )
            width = 460 * line.get("us", 0) / longest
            fill = "#c2410c" if is_ours else "#64748b"
            rows.append(
                f'<rect x="112" y="{y + 2}" width="{width:.1f}" height="14" fill="{fill}"/>'
            )
            figure = f"{_time(line)} us" if "us" in line else "no figure"
            rows.append(f'<text x="{118 + width:.1f}" y="{y + 13}">{figure}</text>')
            y += 20
        y += 22
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="680" height="{y}" viewBox="0 0 680 {y}" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
        f'<text x="16" y="24" font-size="15">{operation}, bfloat16, microseconds of a row, {how}</text>'
        f"{''.join(rows)}</svg>\n"
    )


def main(argv: list[str]) -> None:
    """Prints the table, and writes figures and chart where `--json` and `--chart` say."""
    if len(argv) > 1:
        raise UserError(
            f"{argv[1]!r} is no flag. See python -m pipelines.benchmark_kernels --help."
        )
    for flag in (_JSON, _CHART):
        folder = pathlib.Path(flag.value or "").parent
        require(
            folder.is_dir(), f"--{flag.name} = {flag.value} lies in no folder. Make {folder} first."
        )
    if _STATIC.value:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
    import jax
    import rich.progress

    from m3ae_tpu.measure.baselines import AGAINST
    from m3ae_tpu.measure.kernel_cost import SHAPES
    from m3ae_tpu.measure.tpu_schedule import CHIPS

    operation, known = _OP.value, SHAPES[_OP.value]
    default = {"attention": ["encoder_large"], "cross_entropy": ["text_head"]}[operation]
    shapes = list(known) if _SHAPES.value == ["all"] else _SHAPES.value or default
    against = [name for name in _AGAINST.value if name]
    chips = _STATIC.value or (["v5e"] if jax.default_backend() == "cpu" else [])
    for flag, given, names in (
        ("shapes", shapes, known),
        ("against", against, AGAINST[operation]),
        ("static", chips, [name for name, chip in CHIPS.items() if chip.clock_hz]),
    ):
        for name in given:
            require(name in names, f"--{flag}: {name!r} is not one of {', '.join(names)}.")
    if chips:
        require(
            "cudnn" not in against,
            "--against: cudnn runs on a GPU only; nothing is scheduled for it.",
        )
        _require_libtpu()
    names, chosen = ["ours", *against], {name: known[name] for name in shapes}
    if _TUNE.value:
        require(
            operation == "attention",
            f"--tune is for --op=attention; --op = {operation} has no block sizes.",
        )
        require(bool(chips), f"--tune needs --static; choose of {', '.join(CHIPS)}.")
    with rich.progress.Progress(
        rich.progress.SpinnerColumn(), "{task.description}", transient=True
    ) as bars:
        task = bars.add_task("")

        def report(text: str) -> None:
            bars.update(task, description=text)

        if _TUNE.value:
            tune(chosen, chips, report)
            return
        if chips:
            how, lines = "scheduled", schedule(names, chosen, chips, report)
        else:
            how, lines = f"timed, {_BATCH.value} rows", time(names, chosen, report)
    how += ", masked" if _MASKED.value else ""
    show(operation, lines, how)
    if _JSON.value:
        atomic_write(pathlib.Path(_JSON.value), json.dumps(lines, indent=2) + "\n")
    if _CHART.value:
        atomic_write(pathlib.Path(_CHART.value), chart(operation, lines, how))


def _require_libtpu() -> None:
    import importlib.util

    if importlib.util.find_spec("libtpu") is None:
        raise UserError("libtpu is missing. Install it: pip install 'm3ae-tpu[compile-tpu]'")


def run() -> None:
    """Entry point of the installed command `m3ae-benchmark-kernels`."""
    run_program(main)


if __name__ == "__main__":
    run()
