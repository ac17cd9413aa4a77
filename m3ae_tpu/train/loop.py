"""The training loop: from the newest checkpoint, or from scratch, to the last step."""

import contextlib
import functools
import logging
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from m3ae_tpu.config import RunConfig
from m3ae_tpu.data.prefetch import Prefetcher
from m3ae_tpu.data.sources import OpenData, differences
from m3ae_tpu.errors import require
from m3ae_tpu.parallel.failures import end_all
from m3ae_tpu.parallel.mesh import by_example, make_mesh, require_even_batches
from m3ae_tpu.parallel.processes import compiled_together, is_leader
from m3ae_tpu.parallel.share import share_of
from m3ae_tpu.run.checkpoint import Checkpointer
from m3ae_tpu.run.data_log import DataLog
from m3ae_tpu.run.goodput import Goodput, describe
from m3ae_tpu.run.log import Progress, show_card
from m3ae_tpu.run.metrics import MetricsWriter
from m3ae_tpu.run.preemption import Preemption
from m3ae_tpu.run.profile import Profile
from m3ae_tpu.run.record_ids import RecordIds
from m3ae_tpu.run.watchdog import Watchdog
from m3ae_tpu.run.workdir import Workdir, describe_run, require_tokenizer_fits
from m3ae_tpu.train.card import run_card
from m3ae_tpu.train.flops import seconds_at_peak
from m3ae_tpu.train.monitor import StepMonitor, metrics_line
from m3ae_tpu.train.objective import Objective
from m3ae_tpu.train.program import Program, make_program
from m3ae_tpu.train.step import TrainState

_LOG = logging.getLogger(__name__)


class Probe(NamedTuple):
    """Scores the model while a run goes on, and after its last step."""

    every_steps: int
    """0: only after the last step."""
    score: Callable[[TrainState], dict[str, float]]
    """Returns metrics of the state, which it only reads."""


def train(
    config: RunConfig,
    objective: Objective,
    data: OpenData,
    workdir: Workdir,
    *,
    probe: Probe | None = None,
    progress: Progress | None = None,
    log_record_ids: bool = False,
    allow_changed_data: bool = False,
    profile_steps: tuple[int, int] | None = None,
    hang_seconds: float = 0.0,
    start_time: float | None = None,
) -> int:
    """Trains until the last step, or until SIGTERM or Ctrl-C, and saves.

    A run that is interrupted at any time and started again has the same parameters and the same
    metrics as one that was not.

    Args:
        config: The run's settings.
        objective: The model and its loss.
        data: What the config's data hold.
        workdir: The run's directory, prepared and locked.
        probe: Scores the model every so many steps, and at the end.
        progress: Shows the steps; None: a bar of this run.
        log_record_ids: Writes to `record_ids.jsonl` which records each step sees.
        allow_changed_data: Goes on also where the checkpoint was made with other data.
        profile_steps: First and last step to profile.
        hang_seconds: Ends the run when no step has ended for so long; 0: never.
        start_time: Time at which the program started, as `time.time()` gives it; None: now.

    Returns:
        The number of finished steps.

    Raises:
        UserError: batches that do not divide over the devices, a checkpoint of other data or of
            another model, data that cannot be read, or a loss that is not finite.
    """
    start_time = time.time() if start_time is None else start_time
    mesh = make_mesh(config.mesh)
    require_even_batches(
        data.sources,
        mesh,
        batch_size=config.batch_size,
        accumulation_steps=config.optimizer.accumulation_steps,
    )
    tokenizer, fingerprint = data.tokenizer_model, data.fingerprint()
    description = describe_run(config, tokenizer=tokenizer)
    program = make_program(config, objective, mesh)
    with contextlib.ExitStack() as stack:
        checkpointer = Checkpointer(
            workdir.path, config.checkpoint, before_commit=workdir.claim.before_commit
        )
        stack.callback(checkpointer.close)

        state, data_state = _newest_state(program, checkpointer, config, tokenizer)
        start = int(state.step)
        changes = differences(fingerprint, data_state["fingerprint"]) if data_state else []
        _require_same_data(changes, allow_changed_data)
        workdir.record(config, tokenizer=tokenizer)
        if start >= config.num_steps:
            _LOG.info(
                "%s has finished its %d steps; raise --num_steps to go on", workdir.address, start
            )
            return start

        goodput = Goodput(
            workdir.path if is_leader() else None, resume_step=start, start_time=start_time
        )
        stack.callback(goodput.close)
        share = share_of(mesh)
        loader = data.loader(
            start_step=start,
            parts=share.parts,
            num_parts=share.num_parts,
        )
        batches = Prefetcher(loader, by_example(mesh), timeout_seconds=config.data.timeout_seconds)
        stack.callback(batches.close)
        data_log = DataLog(data, state=None if changes else data_state.get("data_log"))
        record_ids = RecordIds(
            workdir.path, is_logged=log_record_ids, resume_step=start, share=share
        )
        stack.callback(record_ids.close)
        writer = MetricsWriter(
            workdir.path if is_leader() else None,
            resume_step=start,
            wandb_project=config.logging.wandb_project,
        )
        stack.callback(writer.close)
        monitor = StepMonitor(
            batch_size=config.batch_size, wait_seconds=lambda: batches.wait_seconds
        )
        preemption = stack.enter_context(Preemption())
        progress = stack.enter_context(progress or Progress(config.num_steps, start))
        step_fn, at_peak = program.step, 0.0
        profile = stack.enter_context(
            Profile(workdir.path, profile_steps if is_leader() else None, start_step=start)
        )
        watchdog = stack.enter_context(Watchdog(hang_seconds))
        stack.push(end_all)  # Before the exits above, which would wait for the other processes.

        for step in range(start + 1, config.num_steps + 1):
            profile.begin(step, state)
            with goodput.spent("data_wait"):
                batch, info = next(batches)
            if not share.is_first:
                info = info.without_rows()
            data_log.add(info)
            record_ids.add(step, info)
            if step == start + 1:
                card = objective.describe(state.model, batch)
                card += run_card(config, data.sources, data.num_records, start_step=start)
                show_card(card, "run")
                at_peak = seconds_at_peak(functools.partial(objective.count_flops, batch))
                step_fn = compiled_together(program.step, state, batch)
            state, metrics = step_fn(state, batch)
            monitor.dispatched(step, metrics)
            watchdog.finished(step)
            profile.end(step, metrics)
            goodput.dispatched(step)
            progress.advance(step)

            is_last, stops = step == config.num_steps, preemption.reached(step)
            saves = is_last or stops or step % config.checkpoint.every_steps == 0
            every = probe.every_steps if probe is not None else 0
            probes = is_last or (every > 0 and step % every == 0)
            logs = probes or step % config.logging.every_steps == 0
            if logs or saves:
                monitor.require_finite(
                    lambda step: f"{_describe_latest(checkpointer)}.\n{record_ids.explain(step)}"
                )
                record_ids.reduce()
                data_log.reduce()
            if logs:
                # The update of step s is number s - 1.
                rate = np.asarray(program.schedule(step - 1)).item()
                line = metrics_line(metrics) | {"train/learning_rate": rate}
                line |= data_log.line(step) | monitor.rates(step)
                if probe is not None and probes:
                    with goodput.spent("probe"), watchdog.paused("in the probe"):
                        line |= probe.score(state)
                line |= goodput.line()
                if at_peak and "time/seconds_per_step" in line:
                    line["time/mfu"] = at_peak / line["time/seconds_per_step"]
                goodput.record()
                writer.write(step, line)
                progress.report(step, line)
                monitor.start_window(step)
            if saves:
                writer.flush()
                data_state = {"step": step, "fingerprint": fingerprint, "data_log": data_log.state}
                with goodput.spent("checkpoint"), watchdog.paused("saving"):
                    checkpointer.save(step, state, data_state, description)
                goodput.record()
            if stops:
                break
        with goodput.spent("checkpoint"), watchdog.paused("saving"):
            checkpointer.wait()
        done = int(state.step)
    _LOG.info("saved step %d in %s", done, checkpointer.folder)
    _LOG.info("%s", describe(goodput.parts()))
    return done


def _newest_state(
    program: Program, checkpointer: Checkpointer, config: RunConfig, tokenizer: bytes
) -> tuple[TrainState, dict[str, Any]]:
    """Returns state and data state of the newest checkpoint, or the initial ones."""
    if checkpointer.latest_step() is None:
        return program.init(), {}
    state, data_state, run = checkpointer.restore(program.abstract)
    require_tokenizer_fits(run, config.data.tokenizer, tokenizer)
    _LOG.info("going on after step %d", int(state.step))
    return state, data_state


def _describe_latest(checkpointer: Checkpointer) -> str:
    checkpointer.wait()
    step = checkpointer.latest_step()
    place = "does not exist" if step is None else f"is {checkpointer.folder}/{step}"
    return f"the last good checkpoint {place}"


def _require_same_data(changes: list[str], allows: bool) -> None:
    more = f" (and {len(changes) - 3} more)" if len(changes) > 3 else ""
    shown = f"{'; '.join(changes[:3])}{more}"
    require(
        allows or not changes,
        f"the data are not those of the checkpoint: {shown}.\n"
        "Put the old data back, go on with the new ones by --allow_changed_data, "
        "or start another --workdir.",
    )
    if changes:
        _LOG.warning("going on with other data: %s", shown)
