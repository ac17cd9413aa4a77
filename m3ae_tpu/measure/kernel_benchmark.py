"""Benchmark of the kernels beside baselines, and the search of their block sizes, with progress."""

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import rich
import rich.progress

from m3ae_tpu.kernels.attention.shapes import ATTENTION
from m3ae_tpu.kernels.chips import CHIPS, chip_name
from m3ae_tpu.kernels.cross_entropy.shapes import CROSS_ENTROPY
from m3ae_tpu.measure import tables, tuning
from m3ae_tpu.measure.baselines import AGAINST
from m3ae_tpu.measure.compiler_process import TIMEOUT, CompilerProcess, ReplayFailedError
from m3ae_tpu.measure.hlo_text import NotCountedError
from m3ae_tpu.measure.kernel_cost import Case, Timing, scheduled, timed, traffic
from m3ae_tpu.measure.tables import DIRECTION, Line
from m3ae_tpu.measure.tpu_schedule import Cost

__all__ = ["AGAINST", "SHAPES", "Options", "chart", "default_chips", "run", "tune"]

SHAPES: dict[str, Mapping[str, Any]] = {"attention": ATTENTION, "cross_entropy": CROSS_ENTROPY}
"""Named shapes of each operation."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of a benchmark."""

    operation: str
    """A key of `SHAPES`."""
    shapes: Sequence[str]
    """Names of the operation's shapes."""
    names: Sequence[str]
    """Implementations: "ours", and baselines of `AGAINST`."""
    chips: Sequence[str]
    """TPUs to schedule for, which the replay supports; none: time the default device."""
    is_masked: bool = False
    """Give attention a mask of valid keys."""
    batch: int = 64
    """Rows of a timed call."""
    rounds: int = 30
    """Rounds of timing."""

    @property
    def method(self) -> str:
        method = "scheduled" if self.chips else f"timed, {self.batch} rows"
        return f"{method}, masked" if self.is_masked else method


def default_chips() -> list[str]:
    """Returns the chips to schedule for: v5e on a machine without an accelerator, else none."""
    return ["v5e"] if jax.default_backend() == "cpu" else []


def run(options: Options) -> list[Line]:
    """Returns the figures of all implementations, and prints them as tables."""
    shapes = _shapes(options)
    with _progress() as report:
        if options.chips:
            lines = schedule_kernels(
                options.names, shapes, options.chips, is_masked=options.is_masked, report=report
            )
        else:
            lines = time_kernels(
                options.names,
                shapes,
                batch=options.batch,
                rounds=options.rounds,
                is_masked=options.is_masked,
                report=report,
            )
    tables.print_tables(options.operation, lines, options.method)
    return lines


def tune(options: Options) -> None:
    """Searches block sizes of attention for all shapes and chips, and prints the results."""
    with _progress() as report:
        for text in tuning.tune(
            _shapes(options), options.chips, is_masked=options.is_masked, report=report
        ):
            rich.print(text)


def chart(options: Options, lines: Sequence[Line]) -> str:
    """Returns an SVG file of the figures."""
    return tables.chart(options.operation, lines, options.method)


def _shapes(options: Options) -> dict[str, Any]:
    return {name: SHAPES[options.operation][name] for name in options.shapes}


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Shows a spinner, and the line last reported."""
    columns = rich.progress.SpinnerColumn(), "{task.description}"
    with rich.progress.Progress(*columns, transient=True) as bars:
        task = bars.add_task("")
        yield lambda text: bars.update(task, description=text)


def schedule_kernels(
    names: Sequence[str],
    shapes: Mapping[str, Any],
    chips: Sequence[str],
    *,
    is_masked: bool,
    report: Callable[[str], None],
) -> list[Line]:
    """Returns a line for every chip, shape, direction and implementation, scheduled by the TPU
    compiler.

    Args:
        names: "ours", and baselines of the operation.
        shapes: Shapes of the operation by name.
        chips: TPUs of `CHIPS` that the replay supports.
        is_masked: Give attention a mask of valid keys.
        report: Takes a line on the progress.
    """
    lines = []
    replay, plain = CompilerProcess(replay=True, timeout=TIMEOUT), CompilerProcess(replay=False)
    for chip, shape, backward, name in itertools.product(chips, shapes, (False, True), names):
        report(f"{name} {shape} {chip} {DIRECTION[backward]}")
        line: Line = {"device": chip, "shape": shape, "backward": backward, "implementation": name}
        case = Case(shapes[shape], backward, is_masked=is_masked)
        try:
            line |= _scheduled(name, case, chip, replay, plain)
        except (NotImplementedError, ModuleNotFoundError, ValueError) as error:
            line |= {"reason": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
        lines.append(line)
    replay.close()
    plain.close()
    return lines


def _scheduled(
    name: str, case: Case, chip: str, replay: CompilerProcess, plain: CompilerProcess
) -> Line:
    """Returns scheduled figures, or a lower bound from memory traffic where the replay fails."""
    try:
        cost = replay.run(scheduled, name, case, chip)
    except (NotCountedError, ReplayFailedError) as error:
        cost = Cost(chip, 0, plain.run(traffic, name, case, chip))
        bound = {"us": cost.hbm_us, "hbm_bytes": cost.hbm_bytes, "at_least": True}
        return bound | {"reason": str(error)}
    return {key: getattr(cost, key) for key in ("us", "bound", "cycles", "hbm_bytes")}


def time_kernels(
    names: Sequence[str],
    shapes: Mapping[str, Any],
    *,
    batch: int,
    rounds: int,
    is_masked: bool,
    report: Callable[[str], None],
) -> list[Line]:
    """Returns a line for every shape, direction and implementation, timed on the default device.

    Args:
        names: "ours", and baselines of the operation.
        shapes: Shapes of the operation by name.
        batch: Rows of a call.
        rounds: Rounds of timing, of which medians are taken.
        is_masked: Give attention a mask of valid keys.
        report: Takes a line on the progress.
    """
    device = jax.devices()[0].device_kind
    lines = []
    for shape, backward in itertools.product(shapes, (False, True)):
        report(f"{shape} {device} {DIRECTION[backward]}")
        case = Case(shapes[shape], backward, is_masked=is_masked)
        for name, timing in timed(names, case, batch, rounds=rounds).items():
            line: Line = {"device": device, "shape": shape, "backward": backward}
            line |= {"implementation": name}
            is_timed = isinstance(timing, Timing)
            lines.append(line | (_rates(timing, device) if is_timed else {"reason": timing}))
    return lines


def _rates(timing: Timing, device_kind: str) -> Line:
    """Returns time and rates, and the rates' shares of the chip's peaks if it is in the table."""
    flops, moved = timing.flops / timing.us * 1e6, timing.bytes / timing.us * 1e6
    figures = {"us": timing.us, "spread": timing.spread, "flops": flops, "bytes": moved}
    if (name := chip_name(device_kind)) is not None:
        figures["of_peak_flops"] = flops / CHIPS[name].flops
        figures["of_peak_bytes"] = moved / CHIPS[name].bytes_per_second
    return figures
