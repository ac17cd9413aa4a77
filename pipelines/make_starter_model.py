"""Makes the model of the package, of a finished run of a named config.

    python -m pipelines.make_starter_model --config=starter_long --model=runs/starter_long \\
        --output=m3ae_tpu/pretrained/starter

Writes a model folder: weights rounded to float16, the scores of the rounded weights
(`evaluation.json`), `manifest.json` with the config's name, the commit, versions and digests, and a
model card. A run with other values than the config's is refused; name them behind the flags as in
training (`--seed=1`). Takes as long as an evaluation. `make starter-model` trains first.
"""

import pathlib

from m3ae_tpu.command_line import run_program
from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.errors import require
from m3ae_tpu.files import Place
from m3ae_tpu.option_flags import define_flag
from m3ae_tpu.overrides import load_named_config, override

_CONFIG = define_flag("config", str, "starter_long", "Named config of the run.")
_MODEL = define_flag(
    "model", Place, None, "Workdir of the finished run, also gs://BUCKET/FOLDER.", required=True
)
_OUTPUT = define_flag(
    "output", pathlib.Path, None, "Folder to write, missing or empty.", required=True
)
_OVERWRITE = define_flag("overwrite", bool, False, "Replace a model folder that is already there.")


def main(argv: list[str]) -> None:
    """Makes the model folder that the flags ask for."""
    config = override(load_named_config(_CONFIG.value, PretrainConfig), argv[1:])
    require(_MODEL.value is not None, "--model is empty. Name the workdir of a run.")
    require(_OUTPUT.value is not None, "--output is empty. Name a folder.")
    from m3ae_tpu.weights.starter_model import make_starter_model

    make_starter_model(
        _MODEL.value,
        _OUTPUT.value,
        config,
        config_name=_CONFIG.value,
        changes=argv[1:],
        overwrite=_OVERWRITE.value,
    )


def run() -> None:
    """Entry point of the installed command `m3ae-make-starter-model`."""
    run_program(main)


if __name__ == "__main__":
    run()
