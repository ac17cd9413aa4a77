"""Fine-tunes a pre-trained encoder, or trains one from scratch, to tell classes of images apart.

    python -m pipelines.finetune --config=finetune_starter --model=runs/quickstart --workdir=runs/x

Labelled shards come from `prepare_data --kind=labelled`. With --model the network, the size of the
images and their normalisation are those of the pre-trained model; without it the config's network
starts from scratch. The same command resumes an interrupted run, bit for bit.

    python -m pipelines.finetune --workdir=runs/x --predict='data/new/train-*'

classifies the images of shards by a run that is there, and writes WORKDIR/predictions.csv.
"""

import sys

from m3ae_tpu.allocator import keep_freed_memory
from m3ae_tpu.command_line import run_program
from m3ae_tpu.config import FinetuneConfig
from m3ae_tpu.errors import require
from m3ae_tpu.files import Place
from m3ae_tpu.option_flags import define_flag, define_flags
from m3ae_tpu.overrides import load_named_config, override
from m3ae_tpu.parallel.exit_codes import PREEMPTED
from m3ae_tpu.parallel.joining import join_processes, require_consistent
from m3ae_tpu.run.compiled_programs import keep_compiled_programs
from m3ae_tpu.run.options import RunOptions

_CONFIG = define_flag(
    "config", str, "finetune_starter", "Named config to start from, or path of a file like it."
)
_MODEL = define_flag(
    "model",
    Place,
    None,
    "Pre-trained model: the workdir of a run, or a folder of import_weights or export_weights, "
    "also gs://BUCKET/FOLDER. Without it the network starts from scratch.",
)
_WORKDIR = define_flag(
    "workdir",
    Place,
    None,
    "Folder of this run, also gs://BUCKET/FOLDER; made if missing.",
    required=True,
)
_PREDICT = define_flag(
    "predict", str, "", "Shards of images to classify by the run in --workdir; nothing is trained."
)
_OPTIONS = define_flags(RunOptions)


def main(argv: list[str]) -> None:
    """Reads the command line, and trains or predicts."""
    options = _OPTIONS()
    members = options.coordinator_address, options.num_processes, options.process_id
    require_consistent(*members)
    config = load_named_config(_CONFIG.value, FinetuneConfig)
    if _MODEL.value is None or _PREDICT.value or "--help" in argv:
        config = override(config, argv[1:])
    keep_compiled_programs()
    keep_freed_memory()
    if _PREDICT.value:
        require(members == (None, None, None), "--predict runs in one process.")
        from m3ae_tpu.finetuning.predictions import predict_workdir
        from m3ae_tpu.run.claim import files_of

        with files_of(_WORKDIR.value) as folder:
            predict_workdir(folder, _PREDICT.value)
        return
    join_processes(*members)
    from m3ae_tpu.finetuning.run import finetune
    from m3ae_tpu.parallel.failures import shared_fate
    from m3ae_tpu.parallel.processes import is_alone
    from m3ae_tpu.run.goodput import process_start

    model = None
    with shared_fate():
        if _MODEL.value is not None:
            config, model = _with_model(config, argv)
        num_steps = finetune(config, _WORKDIR.value, model, options, start_time=process_start())
    if num_steps < config.num_steps and not is_alone():
        sys.exit(PREEMPTED)


def _with_model(config: FinetuneConfig, argv: list[str]):
    """Returns the config with the settings of --model and of the command line, and the model."""
    from m3ae_tpu.finetuning.start import require_same_network, settings_of
    from m3ae_tpu.pretrained.loading import load_config, load_pretrained
    from m3ae_tpu.run.claim import files_of

    with files_of(_MODEL.value) as folder:
        settings = settings_of(config, load_config(folder))
        config = override(settings, argv[1:])
        require_same_network(config, settings.model, str(_MODEL.value))
        return config, load_pretrained(folder)


def run() -> None:
    """Entry point of the installed command `m3ae-finetune`."""
    run_program(main)


if __name__ == "__main__":
    run()
