"""Asks the loop to save and stop: on SIGTERM, on Ctrl-C, or when the scheduler takes the machines
back.
"""

import logging
import signal
import types
from typing import Any

import jax
from jax.experimental import multihost_utils

_LOG = logging.getLogger(__name__)


class Preemption:
    """While entered, the first SIGTERM or SIGINT only sets a mark; a second one ends the process as
    ever.

        with Preemption() as preemption:
            for step in ...:
                ...
                if preemption.reached(step):
                    ...  # save, then leave

    To be entered in the main thread, as Python delivers signals there. In a run of several
    processes signals are left to JAX's preemption service, which makes all of them stop after the
    same step.
    """

    def __init__(self) -> None:
        self._signal: signal.Signals | None = None
        self._former: dict[signal.Signals, Any] = {}
        self._is_told = False

    def __enter__(self) -> "Preemption":
        if jax.process_count() == 1:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._former[number] = signal.signal(number, self._mark)
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def reached(self, step: int) -> bool:
        """Returns whether to save and stop after `step`; the same in every process."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        # Not told in the handler: a signal in the middle of a print must not print.
        if self._signal is not None and not self._is_told:
            _LOG.warning("%s after step %d: saving, then stopping", self._signal.name, step)
            self._is_told = True
        return self._signal is not None

    def _mark(self, number: int, frame: types.FrameType | None) -> None:
        del frame
        self._signal = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        while self._former:
            signal.signal(*self._former.popitem())
