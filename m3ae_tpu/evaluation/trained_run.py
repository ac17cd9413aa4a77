"""A finished or unfinished run, read back from its folder."""

import dataclasses
import json
import pathlib
from typing import Any

import jax

from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.data.text import Tokenizer
from m3ae_tpu.errors import UserError
from m3ae_tpu.model.m3ae import M3AE
from m3ae_tpu.run.checkpoint import CheckpointReader
from m3ae_tpu.run.workdir import TOKENIZER, load_run_config, require_tokenizer_fits
from m3ae_tpu.train.pretraining import init_model

EVALUATION = "evaluation.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainedRun:
    """The newest checkpoint of a run, and what is needed to use it."""

    config: PretrainConfig
    step: int
    """Finished steps."""
    model: M3AE
    tokenizer: Tokenizer
    versions: dict[str, str]
    """Of the packages that trained it."""


def load_trained_run(workdir: pathlib.Path) -> TrainedRun:
    """Loads config, tokenizer and the model of the newest undamaged checkpoint, onto the first
    device.

    Raises:
        UserError: the folder holds no run or no checkpoint, or they do not fit together.
    """
    config = load_run_config(workdir, PretrainConfig)
    abstract = jax.eval_shape(lambda: init_model(config))
    step, model, run = CheckpointReader(workdir).restore_model(abstract)
    copy = workdir / TOKENIZER
    tokenizer = Tokenizer(str(copy) if copy.exists() else config.data.tokenizer)
    if copy.exists():
        require_tokenizer_fits(run, str(copy), tokenizer.model)
    return TrainedRun(
        config=config, step=step, model=model, tokenizer=tokenizer, versions=run["versions"]
    )


def has_checkpoint(workdir: pathlib.Path) -> bool:
    """Returns whether a run has saved anything yet."""
    return bool(CheckpointReader(workdir).steps())


def read_evaluation(workdir: pathlib.Path) -> dict[str, Any]:
    """Returns `evaluation.json`, empty before the run is evaluated.

    Raises:
        UserError: the file is damaged.
    """
    path = workdir / EVALUATION
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text())
    except ValueError:
        raise UserError(
            f"{path} is no JSON. Make it again: python -m pipelines.evaluate."
        ) from None
