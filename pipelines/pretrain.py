"""Pre-trains an M3AE: from a named config, or a file of your own, to checkpoints in a workdir.

    python -m pipelines.pretrain --config=quickstart --workdir=runs/x --model.encoder.num_layers=4

Every field of the config can be set by its dotted name. The same command resumes an interrupted
run, bit for bit; a larger --num_steps extends a finished one. SIGTERM or Ctrl-C saves first.
"""

import logging
import os
import pathlib
import sys

from m3ae_tpu.command_line import run_program
from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.errors import UserError, require
from m3ae_tpu.files import Place, home_expanded
from m3ae_tpu.option_flags import define_flag
from m3ae_tpu.overrides import load_named_config, override
from m3ae_tpu.parallel.exit_codes import PREEMPTED
from m3ae_tpu.parallel.joining import join_processes, require_consistent

_CONFIG = define_flag(
    "config", str, "quickstart", "Named config to start from, or path of a file like it."
)
_WORKDIR = define_flag(
    "workdir",
    Place,
    None,
    "Folder of this run, also gs://BUCKET/FOLDER; made if missing.",
    required=True,
)

_LOG_RECORD_IDS = define_flag(
    "log_record_ids",
    bool,
    False,
    "Write the ids of each step's records to WORKDIR/record_ids.jsonl.",
)
_ALLOW_CHANGED_DATA = define_flag(
    "allow_changed_data", bool, False, "Resume a run although its shards or sources have changed."
)
_COORDINATOR_ADDRESS = define_flag(
    "coordinator_address", str, None, "HOST:PORT of process 0, for a run of several processes."
)
_NUM_PROCESSES = define_flag("num_processes", int, None, "Processes of the run, over all machines.")
_PROCESS_ID = define_flag(
    "process_id",
    int,
    None,
    "Number of this process, from 0. On TPU slices and under Slurm the three are found out.",
)
_HANG_SECONDS = define_flag(
    "hang_seconds",
    float,
    600.0,
    "End the run, with the stacks of all threads, when no step has ended for so long, and for 20 "
    "times the usual time of a step. 0: never. Compiling, saving and probes do not count.",
    at_least=0,
)
_REPLAY_STEP = define_flag(
    "replay_step",
    int,
    None,
    "Only run this step again, from the checkpoint before it, and save its batch, ids, masks and "
    "the loss of each row to WORKDIR/replay-N.npz. For a loss that was not finite; one process.",
)
_PROFILE_STEPS = define_flag(
    "profile_steps",
    tuple[int, int],
    None,
    "First and last step to profile, as 100,110: a trace for xprof and Perfetto in "
    "WORKDIR/profile.",
)


def pretrain(
    config: PretrainConfig,
    workdir: Place,
    *,
    log_record_ids: bool = False,
    allow_changed_data: bool = False,
    profile_steps: tuple[int, int] | None = None,
    hang_seconds: float = 0.0,
    start_time: float | None = None,
    replay_step: int | None = None,
) -> int:
    """Runs `config` to its last step, writing metrics and checkpoints to `workdir`.

    With `replay_step` it only runs that step again, and writes what the step saw.

    Returns:
        The number of finished steps: fewer than the config's if the run was asked to stop.
    """
    from m3ae_tpu.data.sources import open_data
    from m3ae_tpu.parallel.failures import called_at_end
    from m3ae_tpu.parallel.processes import is_alone, leader_first
    from m3ae_tpu.run.log import start_log
    from m3ae_tpu.run.workdir import prepare_workdir

    data = open_data(
        config.data,
        batch_size=config.batch_size,
        seed=config.seed,
        vocab_size=config.model.vocab_size,
    )
    prepared = leader_first(
        "the workdir is prepared",
        lambda: prepare_workdir(
            workdir,
            config,
            tokenizer=data.tokenizer_model,
            allow_changed_data=allow_changed_data,
        ),
    )
    with called_at_end(prepared.unlock):
        # After what may be refused: these take seconds to import.
        from m3ae_tpu.train.loop import Probe, train
        from m3ae_tpu.train.pretraining import pretraining

        start_log(prepared.path)
        for change in prepared.changes:
            logging.getLogger("m3ae_tpu").info("changed: %s", change)
        if replay_step is not None:
            require(
                is_alone(),
                f"--replay_step = {replay_step} runs in one process. Leave out --num_processes.",
            )
            from m3ae_tpu.train.replay import replay

            replay(config, pretraining(config), data, prepared, replay_step)
            return config.num_steps
        probe = None
        if config.probe.every_steps:
            from m3ae_tpu.evaluation.running_probe import make_probe
            from m3ae_tpu.parallel.mesh import make_mesh

            score = make_probe(config.probe, data, make_mesh(config.mesh))
            probe = Probe(config.probe.every_steps, score)
        return train(
            config,
            pretraining(config),
            data,
            prepared,
            probe=probe,
            log_record_ids=log_record_ids,
            allow_changed_data=allow_changed_data,
            profile_steps=profile_steps,
            hang_seconds=hang_seconds,
            start_time=start_time,
        )


def keep_compiled_programs() -> None:
    """Lets JAX keep compiled programs, so that the next start of the same run is quick."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        caches = home_expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
        folder = pathlib.Path(caches) / "m3ae-tpu" / "jax"
        folder.mkdir(parents=True, exist_ok=True)
        require(os.access(folder, os.W_OK), f"{folder} may not be written")
    except (OSError, UserError) as error:
        print(f"compiled programs are not kept for the next start: {error}", flush=True)
    else:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)


def main(argv: list[str]) -> None:
    """Reads the command line and calls `pretrain`."""
    members = _COORDINATOR_ADDRESS.value, _NUM_PROCESSES.value, _PROCESS_ID.value
    require_consistent(*members)
    config = override(load_named_config(_CONFIG.value, PretrainConfig), argv[1:])
    keep_compiled_programs()
    join_processes(*members)
    from m3ae_tpu.parallel.failures import shared_fate
    from m3ae_tpu.parallel.processes import is_alone
    from m3ae_tpu.run.goodput import process_start

    with shared_fate():
        num_steps = pretrain(
            config,
            _WORKDIR.value,
            log_record_ids=_LOG_RECORD_IDS.value,
            allow_changed_data=_ALLOW_CHANGED_DATA.value,
            profile_steps=_PROFILE_STEPS.value,
            hang_seconds=_HANG_SECONDS.value,
            start_time=process_start(),
            replay_step=_REPLAY_STEP.value,
        )
    if num_steps < config.num_steps and not is_alone():
        sys.exit(PREEMPTED)


def run() -> None:
    """Entry point of the installed command `m3ae-pretrain`."""
    run_program(main)


if __name__ == "__main__":
    run()
