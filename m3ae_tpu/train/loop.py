"""The training loop: from the newest checkpoint, or from scratch, to the last step."""

import contextlib
import functools
import logging
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.data.loader import BatchInfo
from m3ae_tpu.data.prefetch import Prefetcher
from m3ae_tpu.data.sources import differences, open_data
from m3ae_tpu.errors import UserError, require
from m3ae_tpu.model.m3ae import M3AE
from m3ae_tpu.parallel.mesh import (
    attention_on,
    by_example,
    cross_entropy_on,
    make_mesh,
    replicated,
    require_even_batches,
)
from m3ae_tpu.run.checkpoint import Checkpointer
from m3ae_tpu.run.data_log import DataLog, RecordIdsWriter
from m3ae_tpu.run.log import Progress, show_card
from m3ae_tpu.run.metrics import MetricsWriter
from m3ae_tpu.run.preemption import Preemption
from m3ae_tpu.run.workdir import Workdir, describe_run, require_tokenizer_fits
from m3ae_tpu.train.card import run_card
from m3ae_tpu.train.reconstruction import Batch, Metrics
from m3ae_tpu.train.step import TrainState, init_state, make_optimizer, train_step

type Probe = Callable[[M3AE], dict[str, float]]
type StepFunction = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]

_LOG = logging.getLogger(__name__)
_IN_FLIGHT = 2
"""Steps that the host may be ahead of the device; with more, batches would pile up in its memory.
"""


def as_arrays(batch) -> Batch:
    """Returns the rows of each kind as a dictionary of arrays, until the step takes `Rows`."""
    names = ("image", "flip", "text", "text_valid")
    return {
        kind: {name: array for name, array in zip(names, rows, strict=True) if array is not None}
        for kind, rows in batch.items()
    }


def compile_step(config: PretrainConfig, mesh: Mesh) -> StepFunction:
    """Returns `train_step` for a mesh: state replicated and donated, batches spread over the
    devices.
    """
    optimizer, _ = make_optimizer(config)
    return jax.jit(
        functools.partial(train_step, config=config, optimizer=optimizer),
        in_shardings=(replicated(mesh), by_example(mesh)),
        out_shardings=replicated(mesh),
        donate_argnums=0,
    )


def train(
    config: PretrainConfig,
    workdir: Workdir,
    *,
    tokenizer: bytes = b"",
    probe: Probe | None = None,
    log_record_ids: bool = False,
    allow_changed_data: bool = False,
) -> int:
    """Trains until the last step, or until SIGTERM or Ctrl-C, and saves. Returns the number of
    finished steps.

    A run that is interrupted at any time and started again has the same parameters and the same
    metrics as one that was not.

    Args:
        config: The run's.
        workdir: Its folder, prepared and locked.
        tokenizer: Content of the tokenizer's file; empty for a run without text.
        probe: Scores the features every `probe.every_steps` steps.
        log_record_ids: Writes to `record_ids.jsonl` which records each step sees.
        allow_changed_data: Goes on also where the checkpoint was made with other data.

    Raises:
        UserError: batches that do not divide over the devices, a checkpoint of other data or of
            another model, data that cannot be read, or a loss that is not finite.
    """
    mesh = make_mesh()
    require_even_batches(config, mesh)
    opened = open_data(
        config.data,
        batch_size=config.batch_size,
        seed=config.seed,
        vocab_size=config.model.vocab_size,
    )
    data = opened.fingerprint()
    checkpointer = Checkpointer(workdir.path, config.checkpoint)
    try:
        state, position = _newest_state(config, checkpointer, mesh, tokenizer)
        start = int(state.step)
        changes = differences(data, position["fingerprint"]) if position else []
        _require_same_data(changes, allow_changed_data)
        if position:
            _LOG.info("going on after step %d", start)
        workdir.record(config, tokenizer=tokenizer)
        if start >= config.num_steps:
            _LOG.info(
                "%s has finished its %d steps; raise --num_steps to go on", workdir.path, start
            )
            return start
        loader = opened.loader(
            start_step=start,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        counted = None if changes else position.get("data_log")
        data_log = DataLog(opened, state=counted)
        with contextlib.ExitStack() as stack:
            ids = RecordIdsWriter(workdir.path, resume_step=start) if log_record_ids else None
            if ids:
                stack.callback(ids.close)
            batches = Prefetcher(
                loader, by_example(mesh), timeout_seconds=config.data.timeout_seconds
            )
            stack.callback(batches.close)
            metrics = MetricsWriter(
                workdir.path, resume_step=start, wandb_project=config.logging.wandb_project
            )
            stack.callback(metrics.close)
            description = describe_run(config, tokenizer=tokenizer)
            run = _Run(
                config, checkpointer, metrics, batches, data_log, ids, data, description, probe
            )
            return run.go(state, compile_step(config, mesh))
    finally:
        checkpointer.close()


def _newest_state(
    config: PretrainConfig, checkpointer: Checkpointer, mesh: Mesh, tokenizer: bytes
) -> tuple[TrainState, dict[str, Any]]:
    """Returns state and data position of the newest checkpoint, or the initial state where there is
    none.
    """
    init = jax.jit(
        functools.partial(init_state, config, attention_on(mesh), cross_entropy_on(mesh)),
        out_shardings=replicated(mesh),
    )
    if checkpointer.latest_step() is None:
        return init(), {}
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated(mesh)),
        jax.eval_shape(init),
    )
    state, position, run = checkpointer.restore(abstract)
    require_tokenizer_fits(run, config.data.tokenizer, tokenizer)
    return state, position


def _require_same_data(changes: list[str], allows: bool) -> None:
    more = f" (and {len(changes) - 3} more)" if len(changes) > 3 else ""
    said = f"{'; '.join(changes[:3])}{more}"
    require(
        allows or not changes,
        f"the data are not those of the checkpoint: {said}.\n"
        "Put the old data back, go on with the new ones by --allow_changed_data, or start another --workdir.",
    )
    if changes:
        _LOG.warning("going on with other data: %s", said)


class _Run:
    """The loop's own bookkeeping: what was dispatched and not looked at yet, and when."""

    def __init__(
        self,
        config: PretrainConfig,
        checkpointer: Checkpointer,
        writer: MetricsWriter,
        batches: Prefetcher,
        data_log: DataLog,
        ids: RecordIdsWriter | None,
        data: dict[str, Any],
        description: dict[str, Any],
        probe: Probe | None,
    ):
        self._config, self._checkpointer, self._writer, self._batches = (
            config,
            checkpointer,
            writer,
            batches,
        )
        self._data_log, self._ids = data_log, ids
        self._data, self._description, self._probe = data, description, probe
        self._schedule = make_optimizer(config)[1]
        self._pending: list[tuple[int, Metrics]] = []
        self._window_start = self._waited = 0.0
        self._window_step = 0

    def go(self, state: TrainState, step_fn: StepFunction) -> int:
        """Runs to the last step or to a request to stop."""
        config, first = self._config, int(state.step)
        with Preemption() as preemption, Progress(config.num_steps, first) as progress:
            for step in range(first + 1, config.num_steps + 1):
                batch, info = self._next_batch()
                self._data_log.add(info)
                if self._ids:
                    self._ids.write(step, info)
                if step == first + 1:
                    show_card(run_card(config, state, batch, self._data), "run")
                state, metrics = step_fn(state, batch)
                self._pending.append((step, metrics))
                if step == first + 1:
                    jax.block_until_ready(metrics)  # Compiling is no part of the rates.
                    self._start_window(step)
                elif len(self._pending) > _IN_FLIGHT:
                    jax.block_until_ready(self._pending[-1 - _IN_FLIGHT][1])
                progress.advance(step)
                is_last, stops = step == config.num_steps, preemption.reached(step)
                saves = is_last or stops or step % config.checkpoint.every_steps == 0
                probes = self._probe is not None and (
                    is_last or step % config.probe.every_steps == 0
                )
                logs = is_last or probes or step % config.logging.every_steps == 0
                if logs or saves:
                    self._check_finite()
                    self._data_log.reduce()
                if logs:
                    scores = self._probe(state.model) if probes and self._probe is not None else {}
                    line = self._line(step, metrics) | scores
                    self._writer.write(step, line)
                    progress.report(step, line)
                    self._start_window(step)
                if saves:
                    self._writer.flush()
                    position = {
                        "step": step,
                        "fingerprint": self._data,
                        "data_log": self._data_log.state,
                    }
                    self._checkpointer.save(step, state, position, self._description)
                if stops:
                    break
        self._checkpointer.wait()
        done = int(state.step)
        _LOG.info("saved step %d in %s", done, self._checkpointer.folder)
        return done

    def _next_batch(self) -> tuple[Batch, BatchInfo]:
        batch, info = next(self._batches)
        return as_arrays(batch), info

    def _check_finite(self) -> None:
        """Waits for all dispatched steps and looks at each one's loss, gradient and new parameters."""
        for step, metrics in self._pending:
            for name in ("loss", "grad_norm", "parameter_norm"):
                value = float(metrics[name])
                if not math.isfinite(value):
                    self._checkpointer.wait()
                    good = self._checkpointer.latest_step()
                    last = (
                        "does not exist"
                        if good is None
                        else f"is {self._checkpointer.folder / str(good)}"
                    )
                    raise UserError(
                        f"train/{name} = {value} at step {step} is not finite; the last good checkpoint {last}.\n"
                        "Lower --optimizer.base_learning_rate or set --optimizer.clip_norm=1, and start again."
                    )
        self._pending.clear()

    def _line(self, step: int, metrics: Metrics) -> dict[str, Any]:
        """Returns a line of metrics: the values of this very step, and the rates and sums since the
        last line.

        The first step compiles and is no part of the rates: a line of that step alone has none.
        """
        line: dict[str, Any] = {
            f"train/{name}": value.item() for name, value in sorted(metrics.items())
        }
        # The rate of the step's own update, which is number step - 1.
        line["train/learning_rate"] = np.asarray(self._schedule(step - 1)).item()
        line |= self._data_log.line(step)
        seconds, steps = time.monotonic() - self._window_start, step - self._window_step
        if steps:
            line["time/seconds_per_step"] = seconds / steps
            line["time/examples_per_second"] = steps * self._config.batch_size / seconds
            line["time/data_wait_fraction"] = (self._batches.wait_seconds - self._waited) / seconds
        return line

    def _start_window(self, step: int) -> None:
        self._window_start, self._window_step = time.monotonic(), step
        self._waited = self._batches.wait_seconds
