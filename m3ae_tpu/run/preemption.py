"""Requests to save and stop: SIGTERM, Ctrl-C, or a scheduler that takes the machines back."""

import logging
import signal
import types
from typing import Any

from m3ae_tpu.parallel import processes

_LOG = logging.getLogger(__name__)


class Preemption:
    """Context in which the first SIGTERM or SIGINT sets a mark, and a second one ends the process.

        with Preemption() as preemption:
            for step in ...:
                ...
                if preemption.reached(step):
                    ...  # save, then leave

    It must be entered in the main thread, to which Python delivers signals. In a run of several
    processes JAX's preemption service handles the signals and stops all after the same step.
    """

    def __init__(self) -> None:
        self._signal: signal.Signals | None = None
        self._former: dict[signal.Signals, Any] = {}
        self._is_logged = False

    def __enter__(self) -> "Preemption":
        if processes.is_alone():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._former[number] = signal.signal(number, self._mark)
        return self

    def __exit__(self, *exception: object) -> None:
        self._restore()

    def reached(self, step: int) -> bool:
        """Returns whether to save and stop after `step`; the same in every process."""
        if not processes.is_alone():
            is_preempted = processes.is_preempted(step)
            if is_preempted and not self._is_logged:
                _LOG.warning("asked to stop after step %d: all processes save, then stop", step)
                self._is_logged = True
            return is_preempted
        # Logged here, not in the handler: it may interrupt another write to the same stream.
        if self._signal is not None and not self._is_logged:
            _LOG.warning("%s after step %d: saving, then stopping", self._signal.name, step)
            self._is_logged = True
        return self._signal is not None

    def _mark(self, number: int, frame: types.FrameType | None) -> None:
        del frame
        self._signal = signal.Signals(number)
        self._restore()

    def _restore(self) -> None:
        while self._former:
            signal.signal(*self._former.popitem())
