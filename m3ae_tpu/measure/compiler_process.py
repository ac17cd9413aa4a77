"""A process beside this one that compiles for TPUs: with the compiler's replay it may abort, or not
come to an end.
"""

import concurrent.futures
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool

from m3ae_tpu.measure import tpu_schedule


class ReplayFailedError(Exception):
    """The compiler's replay ended its process, or took too long."""


class CompilerProcess:
    """Runs functions one after the other in a process of its own, in which libtpu reads its flags
    once.

    Args:
        replay: Have the compiler count cycles; see `tpu_schedule.prepare`.
        patience: Seconds for one function; None waits for ever.
    """

    def __init__(self, *, replay: bool, patience: float | None = None):
        self._replay, self._patience = replay, patience
        self._pool = self._start()

    def _start(self) -> concurrent.futures.ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        return concurrent.futures.ProcessPoolExecutor(
            1, context, initializer=_prepare, initargs=(self._replay,)
        )

    def run[Result](self, function: Callable[..., Result], *arguments) -> Result:
        """Returns what a function of a module does there.

        Raises:
            ReplayFailedError: the process ended or was not ready in time; the next call has a new
                one.
        """
        try:
            return self._pool.submit(function, *arguments).result(self._patience)
        except BrokenProcessPool:
            reason = (
                "the compiler's replay aborts" if self._replay else "the compiler's process ended"
            )
        except TimeoutError:
            reason = f"the compiler's replay takes over {self._patience:.0f} s"
        self.close()
        self._pool = self._start()
        raise ReplayFailedError(reason)

    def close(self) -> None:
        """Ends the process, whatever it does."""
        for process in list(
            self._pool._processes.values()
        ):  # An endless replay hears nothing else.
            process.kill()
        self._pool.shutdown()


def _prepare(replay: bool) -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"
    tpu_schedule.prepare(replay=replay)
    # The compiler says much on its way to an abort.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
