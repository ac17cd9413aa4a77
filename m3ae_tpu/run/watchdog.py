"""A watchdog over the steps of a run: when none ends for too long, it ends the run and says why."""

import collections
import contextlib
import statistics
import threading
import time
from collections.abc import Iterator

from m3ae_tpu.parallel import failures
from m3ae_tpu.parallel.exit_codes import HUNG

_TIMES_MEDIAN = 20
_WINDOW = 100
"""Latest steps whose time counts."""


class Watchdog:
    """Context around the steps of a run that ends the process when no step ends any more.

    A hang of one process holds up the steps of all: each one logs how far every process is, and the
    stacks of its own threads.
    """

    def __init__(self, seconds: float):
        """Takes the time that a step may always take, beside 20 times the median; 0: for ever."""
        self._seconds = seconds
        self._durations = collections.deque[float](maxlen=_WINDOW)
        self._progress, self._last = "before its first step", 0.0
        self._is_watching = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        if self._seconds:
            self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()

    def finished(self, step: int) -> None:
        """Notes that a step has ended. The first one starts the watch: before it, JAX compiles."""
        now = time.monotonic()
        if self._is_watching:
            self._durations.append(now - self._last)
        self._progress, self._last, self._is_watching = f"after step {step}", now, True

    @contextlib.contextmanager
    def paused(self, activity: str) -> Iterator[None]:
        """Context of work between steps that may take any time."""
        progress, is_watching = self._progress, self._is_watching
        self._progress, self._is_watching = f"{progress}, {activity}", False
        yield
        self._last, self._is_watching, self._progress = time.monotonic(), is_watching, progress

    def _limit(self) -> float:
        usual = statistics.median(self._durations) if self._durations else 0.0
        return max(self._seconds, _TIMES_MEDIAN * usual)

    def _watch(self) -> None:
        published = ""
        while not self._stop.wait(min(1.0, self._seconds / 4)):
            if self._progress != published:
                published = self._progress
                failures.publish_progress(published)
            waited = time.monotonic() - self._last
            if self._is_watching and waited > self._limit():
                self._end(waited)

    def _end(self, waited: float) -> None:
        others = failures.all_progress()
        failures.end_with(
            f"no step has ended for {waited:.0f} seconds, {self._progress}. "
            + (f"Look at the process that is behind: {'; '.join(others)}. " if others else "")
            + "The log has the stacks of all threads. If steps just take long, raise "
            "--hang_seconds",
            HUNG,
        )
