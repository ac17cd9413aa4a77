"""The start of a training program: it claims its workdir, then trains, or replays a step."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from m3ae_tpu.config import RunConfig
from m3ae_tpu.data.sources import OpenData
from m3ae_tpu.errors import require
from m3ae_tpu.files import Place
from m3ae_tpu.parallel.failures import called_at_end
from m3ae_tpu.parallel.processes import is_alone, leader_first
from m3ae_tpu.run.log import start_log
from m3ae_tpu.run.options import RunOptions
from m3ae_tpu.run.workdir import Workdir, prepare_workdir

if TYPE_CHECKING:
    from m3ae_tpu.train.loop import Probe
    from m3ae_tpu.train.objective import Objective


def start(
    config: RunConfig,
    data: OpenData,
    address: Place,
    *,
    prepare: Callable[[Workdir], "tuple[Objective, Probe | None]"],
    options: RunOptions = RunOptions(),
    start_time: float | None = None,
) -> int:
    """Runs a config to its last step, writing metrics and checkpoints to a workdir.

    With `options.replay_step` it only runs that step again, and writes what the step saw.

    Args:
        config: The run's.
        data: What the config's data hold.
        address: The workdir.
        prepare: Returns what is trained and what scores it, once the workdir is claimed.
        options: Those of this start.
        start_time: As `train` takes it.

    Returns:
        The number of finished steps: fewer than the config's if the run was asked to stop.

    Raises:
        UserError: the workdir, the data or the options do not fit.
    """
    workdir = leader_first(
        "the workdir is prepared",
        lambda: prepare_workdir(
            address,
            config,
            tokenizer=data.tokenizer_model,
            allow_changed_data=options.allow_changed_data,
        ),
    )
    with called_at_end(workdir.unlock):
        # After what may be refused: these take seconds to import.
        from m3ae_tpu.train.loop import train
        from m3ae_tpu.train.replay import replay

        start_log(workdir.path)
        for change in workdir.changes:
            logging.getLogger("m3ae_tpu").info("changed: %s", change)
        objective, probe = prepare(workdir)
        if options.replay_step is not None:
            require(
                is_alone(),
                f"--replay_step = {options.replay_step} runs in one process. "
                "Leave out --num_processes.",
            )
            replay(config, objective, data, workdir, options.replay_step)
            return config.num_steps
        return train(
            config,
            objective,
            data,
            workdir,
            probe=probe,
            log_record_ids=options.log_record_ids,
            allow_changed_data=options.allow_changed_data,
            profile_steps=options.profile_steps,
            hang_seconds=options.hang_seconds,
            start_time=start_time,
        )
