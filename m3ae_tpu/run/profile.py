"""Profile of some steps of a run: a trace of host and devices in `WORKDIR/profile`."""

import logging
import pathlib

import jax
from jaxtyping import PyTree

from m3ae_tpu.errors import require
from m3ae_tpu.storage.mirror import address_of

_LOG = logging.getLogger(__name__)
FOLDER = "profile"


class Profile:
    """Traces the steps that a user asked for. A context around the loop."""

    def __init__(self, workdir: pathlib.Path, steps: tuple[int, int] | None, *, start_step: int):
        """Takes the steps to trace.

        Args:
            workdir: The run's directory.
            steps: The first and the last step; None traces nothing.
            start_step: Finished steps. Steps up to it are left out.

        Raises:
            UserError: the steps are not in order.
        """
        self._folder, self._is_tracing = workdir / FOLDER, False
        self._mark: jax.profiler.StepTraceAnnotation | None = None
        self._first, self._last = steps or (0, 0)
        if steps is None:
            return
        require(
            1 <= self._first <= self._last,
            f"--profile_steps = {self._first},{self._last} is not a first and a last step. "
            "Give two numbers in order: --profile_steps=100,110.",
        )
        self._first = max(self._first, start_step + 1)
        if self._first > self._last:
            _LOG.warning(
                "--profile_steps: step %d is finished already, nothing is profiled", self._last
            )

    def __enter__(self) -> "Profile":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._is_tracing:
            self._stop()

    def begin(self, step: int, state: PyTree) -> None:
        """Begins a step: the trace, if it is the first one to trace, and its mark in the trace.

        Args:
            step: Its number.
            state: Arrays that earlier steps compute. They are not part of the trace.
        """
        if self._first <= step <= self._last:
            if not self._is_tracing:
                jax.block_until_ready(state)
                jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True)
                self._is_tracing = True
            self._mark = jax.profiler.StepTraceAnnotation("train", step_num=step)
            self._mark.__enter__()

    def end(self, step: int, state: PyTree) -> None:
        """Ends a step; after the last one to trace it waits for `state` and writes the trace."""
        if self._is_tracing and self._mark is not None:
            self._mark.__exit__(None, None, None)
            self._mark = None
            if step == self._last:
                jax.block_until_ready(state)
                self._stop()

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._is_tracing = False
        address = f"{address_of(self._folder.parent)}/{FOLDER}"
        _LOG.info(
            "profile of steps %d to %d: %s\n"
            "  see it: pip install xprof, then xprof --logdir=%s\n"
            "  or open its perfetto_trace.json.gz at ui.perfetto.dev",
            self._first,
            self._last,
            address,
            address,
        )
