"""A run, finished or not, read back from its directory."""

import dataclasses
import functools
import json
import pathlib
from typing import Any

import jax
from jax.sharding import Mesh

from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.data.text import Tokenizer
from m3ae_tpu.errors import UserError
from m3ae_tpu.evaluation.task import ReconstructionTask
from m3ae_tpu.model.m3ae import M3AE
from m3ae_tpu.parallel.mesh import make_mesh, replicated
from m3ae_tpu.parallel.operations import Operations
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
    """Whole on every device of the mesh that it computes on."""
    mesh: Mesh
    tokenizer: Tokenizer | None
    """None for a run without text."""
    versions: dict[str, str]
    """Versions of the packages that trained it."""

    @property
    def task(self) -> ReconstructionTask:
        return ReconstructionTask.of_run(self.config)

    def init_model(self) -> M3AE:
        """Draws the run's model before its first step."""
        init = functools.partial(
            init_model, self.config.model, self.config.seed, Operations(self.mesh)
        )
        return jax.jit(init, out_shardings=replicated(self.mesh))()


def load_trained_run(workdir: pathlib.Path) -> TrainedRun:
    """Loads config, tokenizer and the model of the newest undamaged checkpoint, onto all devices.

    Raises:
        UserError: the directory holds no run or no checkpoint, or they do not fit together.
    """
    config, mesh = load_run_config(workdir, PretrainConfig), make_mesh()
    shapes = jax.eval_shape(
        functools.partial(init_model, config.model, config.seed, Operations(mesh))
    )
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated(mesh)), shapes
    )
    step, model, run = CheckpointReader(workdir).restore_model(abstract)
    tokenizer, copy = None, workdir / TOKENIZER
    if ReconstructionTask.of_run(config).has_texts:
        tokenizer = Tokenizer(str(copy) if copy.exists() else config.data.tokenizer)
        require_tokenizer_fits(run, tokenizer.path, tokenizer.model)
    return TrainedRun(
        config=config,
        step=step,
        model=model,
        mesh=mesh,
        tokenizer=tokenizer,
        versions=run["versions"],
    )


def has_checkpoint(workdir: pathlib.Path) -> bool:
    """Returns whether a run has saved anything yet."""
    return bool(CheckpointReader(workdir).steps())


def read_evaluation(workdir: pathlib.Path) -> dict[str, Any]:
    """Returns `evaluation.json`, or nothing before the run is evaluated.

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
            f"{path} is not JSON. Write it again: python -m pipelines.evaluate {workdir}."
        ) from None
