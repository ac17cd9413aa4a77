"""The progress of an experiment's runs: one bar with the time left, and a line for each run."""

import contextlib
import datetime
import time
from collections.abc import Callable, Iterator, Sequence

import rich.progress
from rich.console import Console


class RunsShown:
    """A bar over all runs. A context around them."""

    def __init__(self, name: str, seconds: Sequence[float], console: Console | None = None):
        """Takes the experiment's name, and the expected seconds of each run."""
        # A console of its own: the runs' cards are kept off the shared one.
        self._console = console or Console()
        self._bar = rich.progress.Progress(
            rich.progress.TextColumn(name),
            rich.progress.TextColumn("{task.fields[run]}"),
            rich.progress.BarColumn(bar_width=24),
            rich.progress.TaskProgressColumn(),
            rich.progress.TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
            speed_estimate_period=300,
        )
        self._total, self._num_runs = sum(seconds), len(seconds)
        self._done, self._number = 0.0, 0
        self._task = self._bar.add_task("", total=self._total, run="")
        self._start, self._skipped = time.monotonic(), 0.0

    def __enter__(self) -> "RunsShown":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    @contextlib.contextmanager
    def run(self, title: str, seconds: float) -> Iterator[Callable[[float], None]]:
        """Shows a run; yields a function that takes how many of its expected seconds are done."""
        self._number += 1
        shown = f"run {self._number} of {self._num_runs}: {title}"
        self._bar.update(self._task, run=shown)
        start = time.monotonic()
        yield lambda done: self._bar.update(self._task, completed=self._done + done)
        if time.monotonic() - start < 0.1 * seconds:  # It was finished before.
            self._skipped += seconds
        self._done += seconds
        self._bar.update(self._task, completed=self._done)

    def finished(self, line: str) -> None:
        """Shows a line, with the time left."""
        worked = self._done - self._skipped
        left = ""
        if worked > 0 and self._total > self._done:
            rate = (time.monotonic() - self._start) / worked
            seconds = round(rate * (self._total - self._done))
            left = f"; {datetime.timedelta(seconds=seconds)} left"
        self._console.print(
            f"[{self._number}/{self._num_runs}] {line}{left}", markup=False, highlight=False
        )
