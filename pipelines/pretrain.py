"""Pre-trains an M3AE: from a named config, or a file of your own, to checkpoints in a workdir.

    python -m pipelines.pretrain --config=quickstart --workdir=runs/x --model.encoder.num_layers=4

Every field of the config can be set by its dotted name. The same command resumes an interrupted
run, bit for bit; a larger --num_steps extends a finished one. SIGTERM or Ctrl-C saves first.
"""

import sys
from typing import Any

from m3ae_tpu.allocator import keep_freed_memory
from m3ae_tpu.command_line import run_program
from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.files import Place
from m3ae_tpu.option_flags import define_flag, define_flags
from m3ae_tpu.overrides import load_named_config, override
from m3ae_tpu.parallel.exit_codes import PREEMPTED
from m3ae_tpu.parallel.joining import join_processes, require_consistent
from m3ae_tpu.run.compiled_programs import keep_compiled_programs
from m3ae_tpu.run.options import RunOptions

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
_OPTIONS = define_flags(RunOptions)


def pretrain(
    config: PretrainConfig,
    workdir: Place,
    options: RunOptions = RunOptions(),
    *,
    start_time: float | None = None,
) -> int:
    """Runs `config` to its last step, writing metrics and checkpoints to `workdir`.

    Returns:
        The number of finished steps: fewer than the config's if the run was asked to stop.
    """
    from m3ae_tpu.data.sources import open_data
    from m3ae_tpu.train.start import start

    data = open_data(
        config.data,
        batch_size=config.batch_size,
        seed=config.seed,
        vocab_size=config.model.vocab_size,
    )

    def prepare(_: Any) -> Any:
        from m3ae_tpu.train.initial_words import with_initial_words
        from m3ae_tpu.train.loop import Probe
        from m3ae_tpu.train.pretraining import pretraining

        probe = None
        if config.probe.every_steps and options.replay_step is None:
            from m3ae_tpu.evaluation.running_probe import make_probe
            from m3ae_tpu.parallel.mesh import make_mesh

            score = make_probe(config.probe, data, make_mesh(config.mesh))
            probe = Probe(config.probe.every_steps, lambda state: score(state.model))
        return with_initial_words(pretraining(config), config, data), probe

    return start(config, data, workdir, prepare=prepare, options=options, start_time=start_time)


def main(argv: list[str]) -> None:
    """Reads the command line and calls `pretrain`."""
    options = _OPTIONS()
    members = options.coordinator_address, options.num_processes, options.process_id
    require_consistent(*members)
    config = override(load_named_config(_CONFIG.value, PretrainConfig), argv[1:])
    keep_compiled_programs()
    keep_freed_memory()
    join_processes(*members)
    from m3ae_tpu.parallel.failures import shared_fate
    from m3ae_tpu.parallel.processes import is_alone
    from m3ae_tpu.run.goodput import process_start

    with shared_fate():
        num_steps = pretrain(config, _WORKDIR.value, options, start_time=process_start())
    if num_steps < config.num_steps and not is_alone():
        sys.exit(PREEMPTED)


def run() -> None:
    """Entry point of the installed command `m3ae-pretrain`."""
    run_program(main)


if __name__ == "__main__":
    run()
