"""Compares our kernels with other implementations: timed on the accelerator that is here, or scheduled for a TPU.

    python -m pipelines.benchmark_kernels --op=attention --shapes=all --against=xla,flash,splash,tokamax
    python -m pipelines.benchmark_kernels --static=v5e,v6e --shapes=encoder_large,decoder --chart=attention.svg

Without an accelerator, or with `--static`, time is what the TPU compiler schedules for the chips named: the larger
of cycles and of memory traffic, which counts tile padding. Nothing of it was measured on a chip. It needs libtpu
(`pip install 'm3ae-tpu[compile-tpu]'`). Where the compiler's replay cannot count an operation the table says so.

All is bfloat16, from and to the same arrays: attention from the packed projection to the attention's output, with
splits, transposes and padding counted to whom needs them; cross-entropy from tokens and float32 parameters to the
mean loss. Figures are for one row of the batch: scheduled attention for one more row (at small batches XLA keeps
its scores in VMEM, which it cannot in a training step), all others for one of 64 rows or of `--batch`.
"""

import concurrent.futures
import json
import multiprocessing
import os
import pathlib
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from absl import flags

from m3ae_tpu.config import ConfigError, require
from m3ae_tpu.files import write_whole
from m3ae_tpu.launch_flags import run_program

_OP = flags.DEFINE_enum("op", "attention", ["attention", "cross_entropy"], "Operation to measure.")
_SHAPES = flags.DEFINE_list(
    "shapes", [], "Named shapes of kernels/shapes.py, or `all`; none: the largest encoder, or the text head."
)
_AGAINST = flags.DEFINE_list(
    "against", ["xla"], "Others: xla, flash, splash, tokamax, cudnn; --against= for none."
)
_STATIC = flags.DEFINE_list(
    "static", [], "Chips to schedule for: v5e, v5p, v6e; none: time on the device here."
)
_BATCH = flags.DEFINE_integer("batch", 64, "Rows of a timed batch.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 30, "Rounds of timing; medians are shown.", lower_bound=2)
_JSON = flags.DEFINE_string("json", None, "File to write the figures to.")
_CHART = flags.DEFINE_string("chart", None, "SVG file to draw the figures to.")

type Line = dict[str, Any]
"""`device`, `shape`, `backward`, `implementation`; with a figure `us` and what explains it, else `not_counted`."""


def schedule(operation: str, names: list[str], shapes: list[str], chips: list[str], report) -> list[Line]:
    """Returns a line for every chip, shape, direction and implementation, scheduled by the TPU compiler."""
    lines = []
    pool = _compiler()
    for chip, shape, backward, name in _product(chips, shapes, names):
        line = {"device": chip, "shape": shape, "backward": backward, "implementation": name}
        report(f"{name} {shape} {chip}")
        try:
            lines.append(line | pool.submit(_schedule, operation, name, shape, chip, backward).result())
        except BrokenProcessPool:  # Known of the replay: it ends the process that it runs in.
            lines.append(line | {"not_counted": "the compiler's replay aborts"})
            pool = _compiler()
    pool.shutdown()
    return lines


def _product(devices: list[str], shapes: list[str], names: list[str]):
    return [(d, s, b, n) for d in devices for s in shapes for b in (False, True) for n in names]


def _compiler() -> concurrent.futures.ProcessPoolExecutor:
    """A process beside this one, in which the compiler counts cycles and may abort."""
    context = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(1, context, initializer=_prepare)


def _prepare() -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"
    from m3ae_tpu.kernels import scheduled_cost

    scheduled_cost.prepare(replay=True)
    # What the compiler says on its way to an abort is told in the table.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _schedule(operation: str, name: str, shape: str, chip: str, backward: bool) -> Line:
    from m3ae_tpu.kernels.measurement import scheduled
    from m3ae_tpu.kernels.scheduled_cost import NotCountedError

    try:
        cost = scheduled(operation, name, shape, chip, backward=backward)
    except (NotCountedError, NotImplementedError, ModuleNotFoundError, ValueError) as error:
        return {"not_counted": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    return {key: getattr(cost, key) for key in ("us", "bound", "cycles", "hbm_bytes")}


def time(operation: str, names: list[str], shapes: list[str], report) -> list[Line]:
    """Returns a line for every shape, direction and implementation, timed on the device that is here."""
    import jax

    from m3ae_tpu.kernels.measurement import PEAKS, timed

    device = jax.devices()[0].device_kind
    peak_flops, peak_bytes = PEAKS.get(device, (None, None))
    lines = []
    for shape in shapes:
        for backward in (False, True):
            report(f"{shape} {device}")
            timings = timed(operation, names, shape, _BATCH.value, backward=backward, rounds=_ROUNDS.value)
            for name, timing in timings.items():
                line = {"device": device, "shape": shape, "backward": backward, "implementation": name}
                if isinstance(timing, str):
                    lines.append(line | {"not_counted": timing})
                    continue
                rates = {"flops": timing.flops / timing.us * 1e6, "bytes": timing.bytes / timing.us * 1e6}
                if peak_flops and peak_bytes:
                    rates |= {"of_peak_flops": rates["flops"] / peak_flops}
                    rates |= {"of_peak_bytes": rates["bytes"] / peak_bytes}
                lines.append(line | {"us": timing.us, "spread": timing.spread, **rates})
    return lines


def show(operation: str, lines: list[Line], how: str) -> None:
    """Prints the lines as a table, with bars that compare within a shape, direction and device."""
    import rich
    from rich.table import Table

    table = Table(title=f"{operation}, bfloat16, {how}: microseconds of a row", title_justify="left")
    for name in ("device", "shape", "direction", "implementation", "us"):
        table.add_column(name, justify="right" if name == "us" else "left", no_wrap=name != "direction")
    table.add_column("", width=20)
    table.add_column("what limits it, or why there is no figure")
    for group in _groups(lines):
        longest = max((line["us"] for line in group if "us" in line), default=1.0)
        for number, line in enumerate(group):
            head = (line["device"], line["shape"], _direction(line)) if number == 0 else ("", "", "")
            style = "bold" if line["implementation"] == "ours" else ""
            if "us" not in line:
                table.add_row(*head, line["implementation"], "?", "", line["not_counted"], style=style)
                continue
            bar = "█" * max(1, round(20 * line["us"] / longest))
            table.add_row(*head, line["implementation"], f"{line['us']:.2f}", bar, _limit(line), style=style)
        table.add_section()
    rich.print(table)


def _groups(lines: list[Line]) -> list[list[Line]]:
    groups: dict[tuple, list[Line]] = {}
    for line in lines:
        groups.setdefault((line["device"], line["shape"], line["backward"]), []).append(line)
    return list(groups.values())


def _direction(line: Line) -> str:
    return "forward + backward" if line["backward"] else "forward"


def _limit(line: Line) -> str:
    if "cycles" in line:
        return f"{line['bound']}: {line['cycles']:,.0f} cycles, {line['hbm_bytes'] / 1e3:,.0f} kB of HBM"
    text = f"{line['flops'] / 1e12:.1f} TFLOP/s, {line['bytes'] / 1e9:,.0f} GB/s"
    if "of_peak_flops" in line:
        text += f": {line['of_peak_flops']:.0%}, {line['of_peak_bytes']:.0%} of peak"
    return f"{text}; ±{line['spread']:.0%}"


def chart(operation: str, lines: list[Line], how: str) -> str:
    """Draws the figures as horizontal bars, an SVG document; each group has a scale of its own."""
    rows, y = [], 48
    for group in _groups(lines):
        title = f"{group[0]['shape']}, {_direction(group[0])}, {group[0]['device']}"
        rows.append(f'<text x="16" y="{y + 4}" font-weight="bold">{title}</text>')
        y += 14
        longest = max((line["us"] for line in group if "us" in line), default=1.0)
        for line in group:
            is_ours = line["implementation"] == "ours"
            rows.append(f'<text x="104" y="{y + 13}" text-anchor="end">{line["implementation"]}</text>')
            width = 460 * line.get("us", 0) / longest
            fill = "#c2410c" if is_ours else "#64748b"
            rows.append(f'<rect x="112" y="{y + 2}" width="{width:.1f}" height="14" fill="{fill}"/>')
            figure = f"{line['us']:.2f} us" if "us" in line else "no figure"
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
        raise ConfigError(f"{argv[1]!r} is no flag. See python -m pipelines.benchmark_kernels --help.")
    for flag in (_JSON, _CHART):
        folder = pathlib.Path(flag.value or "").parent
        require(folder.is_dir(), f"--{flag.name} = {flag.value} lies in no folder. Make {folder} first.")
    import jax
    import rich.progress

    from m3ae_tpu.kernels.contestants import AGAINST
    from m3ae_tpu.kernels.measurement import SHAPES
    from m3ae_tpu.kernels.scheduled_cost import CHIPS

    operation, known = _OP.value, list(SHAPES[_OP.value])
    default = {"attention": ["encoder_large"], "cross_entropy": ["text_head"]}[operation]
    shapes = known if _SHAPES.value == ["all"] else _SHAPES.value or default
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
        require("cudnn" not in against, "--against: cudnn runs on a GPU only; nothing is scheduled for it.")
        _require_libtpu()
    with rich.progress.Progress(rich.progress.SpinnerColumn(), "{task.description}", transient=True) as bars:
        task = bars.add_task("")

        def report(text: str) -> None:
            bars.update(task, description=text)

        names = ["ours", *against]
        if chips:
            how, lines = "scheduled by the compiler", schedule(operation, names, shapes, chips, report)
        else:
            how, lines = f"timed, {_BATCH.value} rows", time(operation, names, shapes, report)
    show(operation, lines, how)
    if _JSON.value:
        write_whole(pathlib.Path(_JSON.value), json.dumps(lines, indent=2) + "\n")
    if _CHART.value:
        write_whole(pathlib.Path(_CHART.value), chart(operation, lines, how))


def _require_libtpu() -> None:
    import importlib.util

    if importlib.util.find_spec("libtpu") is None:
        raise ConfigError("libtpu is missing. Install it: pip install 'm3ae-tpu[compile-tpu]'")


def run() -> None:
    """Entry point of the installed command `m3ae-benchmark-kernels`."""
    run_program(main)


if __name__ == "__main__":
    run()
