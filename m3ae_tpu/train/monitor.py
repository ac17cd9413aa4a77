"""Watches the steps of a run: how many are in flight, whether they are finite, how fast they go."""

import math
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from m3ae_tpu.errors import UserError
from m3ae_tpu.train.step import Metrics

_IN_FLIGHT = 2
"""Steps that the host may be ahead of the device; more would fill its memory with batches."""
_FINITE = ("loss", "grad_norm", "parameter_norm")


class StepMonitor:
    """Keeps the metrics of dispatched steps until they are checked, and measures rates."""

    def __init__(self, *, batch_size: int, wait_seconds: Callable[[], float]):
        """Starts before the first step.

        Args:
            batch_size: Examples of a step.
            wait_seconds: Returns the time that the run has waited for data so far.
        """
        self._batch_size, self._wait_seconds = batch_size, wait_seconds
        self._unchecked: list[tuple[int, Metrics]] = []
        self._window: tuple[int, float, float] | None = None

    def dispatched(self, step: int, metrics: Metrics) -> None:
        """Takes a step's metrics, and waits for the device where the host is too far ahead."""
        self._unchecked.append((step, metrics))
        if self._window is None:
            jax.block_until_ready(metrics)  # Leaves the time of compiling out of the rates.
            self.start_window(step)
        elif len(self._unchecked) > _IN_FLIGHT:
            jax.block_until_ready(self._unchecked[-1 - _IN_FLIGHT][1])

    def require_finite(self, explain: Callable[[int], str]) -> None:
        """Waits for all dispatched steps, and checks each one's loss, gradient and parameters.

        Args:
            explain: Returns what else to say about a step, for the message.

        Raises:
            UserError: one of them is not finite.
        """
        for step, metrics in self._unchecked:
            for name in _FINITE:
                value = float(metrics.means[name])
                if not math.isfinite(value):
                    raise UserError(
                        f"train/{name} = {value} at step {step} is not finite; {explain(step)}\n"
                        "Lower --optimizer.base_learning_rate or set --optimizer.clip_norm=1, "
                        f"and start again. To see the step: --replay_step={step}."
                    )
        self._unchecked.clear()

    def start_window(self, step: int) -> None:
        """Begins to measure rates after `step`."""
        self._window = step, time.monotonic(), self._wait_seconds()

    def rates(self, step: int) -> dict[str, float]:
        """Returns the rates since `start_window`; none if no step was taken since."""
        if self._window is None or step == self._window[0]:
            return {}
        first, start, waited = self._window
        steps, seconds = step - first, time.monotonic() - start
        return {
            "time/seconds_per_step": seconds / steps,
            "time/examples_per_second": steps * self._batch_size / seconds,
            "time/data_wait_fraction": (self._wait_seconds() - waited) / seconds,
        }


def metrics_line(metrics: Metrics) -> dict[str, Any]:
    """Returns a step's metrics as Python's numbers, sorted, named as in `metrics.jsonl`."""
    values = metrics.means | metrics.counts
    return {f"train/{name}": np.asarray(values[name]).item() for name in sorted(values)}
