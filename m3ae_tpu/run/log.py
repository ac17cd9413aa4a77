"""Messages of a run: progress bar and tables on a terminal, plain lines elsewhere and in a log."""

import datetime
import logging
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

import rich
import rich.progress
import rich.table
from rich.console import Console
from rich.logging import RichHandler

from m3ae_tpu.parallel.processes import file_suffix, is_leader

FILE_NAME = "log.txt"
_LOG = logging.getLogger("m3ae_tpu")
# Metrics of the progress bar, and their short names.
_BAR_METRICS = {
    "train/loss": "loss",
    "train/image_loss": "image",
    "train/text_loss": "text",
    "probe/knn_accuracy": "k-NN",
    "finetune/accuracy": "test accuracy",
    "finetune/average/accuracy": "of the average",
}


def start_log(workdir: pathlib.Path, console: Console | None = None) -> None:
    """Sends the package's log records to the console and, with times, to `WORKDIR/log.txt`.

    The file is appended to; of several processes, those beside the leader have files of their own,
    as `log-001.txt`. Another call, for another run in the same process, closes the former file.

    Args:
        workdir: Directory of the run.
        console: Console to write to; default: rich's, which is standard output.
    """
    console = console or rich.get_console()
    stem, dot, extension = FILE_NAME.partition(".")
    to_file = logging.FileHandler(workdir / f"{stem}{file_suffix()}{dot}{extension}")
    to_file.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    # On a terminal rich prints the lines above the progress bar.
    to_console = (
        RichHandler(console=console, show_time=False, show_level=False, show_path=False)
        if console.is_terminal
        else logging.StreamHandler(console.file)
    )
    to_console.addFilter(lambda record: not getattr(record, "is_on_console", False))
    for handler in list(_LOG.handlers):
        _LOG.removeHandler(handler)
        handler.close()
    _LOG.addHandler(to_file)
    _LOG.addHandler(to_console)
    _LOG.setLevel(logging.INFO)
    _LOG.propagate = False


def show_card(rows: Sequence[tuple[str, str]], title: str, console: Console | None = None) -> None:
    """Shows names and values: a table on a terminal, aligned lines elsewhere and in the log.

    Of several processes the leader shows them.
    """
    if not is_leader():
        return
    console = console or rich.get_console()
    if console.is_terminal:
        table = rich.table.Table(title=title, show_header=False, title_justify="left")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    width = max(len(name) for name, _ in rows)
    for line in [title, *(f"  {name:<{width}}  {value}" for name, value in rows)]:
        _LOG.info("%s", line, extra={"is_on_console": console.is_terminal})


class Progress:
    """The progress bar of a run, and its lines of metrics. A context around the loop.

    Of several processes the leader shows them.
    """

    def __init__(self, num_steps: int, start_step: int = 0, console: Console | None = None):
        self._num_steps = num_steps
        self._console = console or rich.get_console()
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn("step"),
            rich.progress.MofNCompleteColumn(),
            rich.progress.BarColumn(bar_width=24),
            rich.progress.TextColumn("{task.fields[metrics]}", style="progress.data.speed"),
            rich.progress.TimeRemainingColumn(),
            console=self._console,
            disable=not (self._console.is_terminal and is_leader()),
        )
        self._first_report: tuple[int, float] | None = None
        self._task = self._bar.add_task(
            "", total=num_steps, completed=start_step, metrics="compiling"
        )

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def advance(self, step: int) -> None:
        """Moves the bar to `step` finished steps. Cheap enough for every step."""
        self._bar.update(self._task, completed=step)

    def report(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Shows metrics of a step, named as in `metrics.jsonl`, and logs them in one line."""
        if not is_leader():
            return
        text = _summary(metrics)
        self._bar.update(self._task, completed=step, metrics=text)
        line = f"step {step}/{self._num_steps}  {text}{self._time_left(step)}"
        _LOG.info("%s", line, extra={"is_on_console": self._console.is_terminal})

    def _time_left(self, step: int) -> str:
        # Counted from the first report, which comes after compiling.
        if self._first_report is None:
            self._first_report = (step, time.monotonic())
        first_step, start = self._first_report
        if step == first_step:
            return ""
        seconds = (time.monotonic() - start) / (step - first_step) * (self._num_steps - step)
        return f"  {datetime.timedelta(seconds=round(seconds))} left"


def _summary(metrics: Mapping[str, Any]) -> str:
    shown = [
        f"{short} {float(metrics[name]):.4f}"
        for name, short in _BAR_METRICS.items()
        if name in metrics
    ]
    if "time/examples_per_second" in metrics:
        shown.append(f"{float(metrics['time/examples_per_second']):,.0f} examples/s")
    if "time/data_wait_fraction" in metrics:
        shown.append(f"{float(metrics['time/data_wait_fraction']):.0%} waiting for data")
    return "  ".join(shown)
