"""A child process that compiles for TPUs, since the compiler's replay may abort or never end."""

import concurrent.futures
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool

from m3ae_tpu.measure import tpu_schedule

TIMEOUT = 600.0
"""Seconds for one replay; the decoder's backward kernel takes minutes on a slow machine."""


class ReplayFailedError(Exception):
    """The compiler's replay aborted its process or exceeded its time limit."""


class CompilerProcess:
    """Runs functions one after the other in a child process, whose libtpu reads its own flags.

    Args:
        replay: Make the compiler count cycles; see `tpu_schedule.prepare`.
        timeout: Seconds for one function; None for no limit.
    """

    def __init__(self, *, replay: bool, timeout: float | None = None):
        self._replay, self._timeout = replay, timeout
        self._pool = self._start()

    def _start(self) -> concurrent.futures.ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        return concurrent.futures.ProcessPoolExecutor(
            1, context, initializer=_prepare, initargs=(self._replay,)
        )

    def run[Result](self, function: Callable[..., Result], *arguments) -> Result:
        """Returns `function(*arguments)`, computed in the child process.

        Raises:
            ReplayFailedError: the process ended, or the time limit passed. The next call starts a
                new process.
        """
        try:
            return self._pool.submit(function, *arguments).result(self._timeout)
        except BrokenProcessPool:
            reason = (
                "the compiler's replay aborts" if self._replay else "the compiler's process ended"
            )
        except TimeoutError:
            reason = f"the compiler's replay takes over {self._timeout:.0f} s"
        self.close()
        self._pool = self._start()
        raise ReplayFailedError(reason)

    def close(self) -> None:
        """Kills the process."""
        # `shutdown` alone would wait for a replay that never ends.
        for process in list(self._pool._processes.values()):
            process.kill()
        self._pool.shutdown()


def _prepare(replay: bool) -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"
    tpu_schedule.prepare(replay=replay)
    # The compiler prints pages of stack traces before it aborts.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
