"""The runs of an experiment: trained by the loop that trains everything, and read back."""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator

import jax
import rich
from jax.sharding import Mesh
from jaxtyping import PyTree

from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.config.tree import replaced
from m3ae_tpu.data.sources import open_data
from m3ae_tpu.errors import require
from m3ae_tpu.experiments.clip import contrastive
from m3ae_tpu.experiments.experiments import IMAGES_ALONE
from m3ae_tpu.experiments.supervised import supervised, with_labels
from m3ae_tpu.experiments.variant import Variant
from m3ae_tpu.measure.rehearsal import config_batch_shapes
from m3ae_tpu.parallel.mesh import make_mesh, replicated
from m3ae_tpu.parallel.operations import Operations
from m3ae_tpu.pretrained.loading import load_pretrained
from m3ae_tpu.pretrained.pretrained import Pretrained
from m3ae_tpu.run.checkpoint import CheckpointReader
from m3ae_tpu.run.log import Progress
from m3ae_tpu.run.workdir import load_run_config, prepare_workdir
from m3ae_tpu.train.flops import flops_by_scope
from m3ae_tpu.train.initial_words import with_initial_words
from m3ae_tpu.train.loop import train
from m3ae_tpu.train.objective import Objective
from m3ae_tpu.train.pretraining import pretraining

_IMAGE_TOWER = {**IMAGES_ALONE, "model.decoder.num_layers": 0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A variant with a seed."""

    variant: Variant
    seed: int
    config: PretrainConfig
    folder: pathlib.Path
    """Its workdir, like that of any run."""


def make_run(variant: Variant, seed: int, num_steps: int, output: pathlib.Path) -> Run:
    """Returns a run of a variant; `num_steps` are those of the longest variant."""
    steps = max(1, round(variant.length * num_steps))
    config = replaced(variant.starter.load(), {"seed": seed, "num_steps": steps})
    if variant.method == "supervised":
        config = with_labels(config, output / "data")
    name = "-".join("".join(c if c.isalnum() else " " for c in variant.name).split())
    return Run(
        variant=variant, seed=seed, config=config, folder=output / "runs" / f"{name}-seed{seed}"
    )


def objective_of(run: Run) -> Objective:
    """Returns the objective of a run's method."""
    objectives: dict[str, Callable[[PretrainConfig], Objective]] = {
        "reconstruction": pretraining,
        "contrastive": contrastive,
        "supervised": supervised,
    }
    return objectives[run.variant.method](run.config)


def step_flops(run: Run) -> int:
    """Returns the FLOPs of a train step, forward and backward."""
    objective = objective_of(run)
    model = jax.eval_shape(functools.partial(objective.init_model, Operations()))
    return sum(flops_by_scope(objective.loss, model, config_batch_shapes(run.config)).values())


class StepsShown(Progress):
    """Progress of a run as part of a longer bar."""

    def __init__(self, show: Callable[[int], None]):
        """Takes a function that gets the number of finished steps."""
        self._show = show

    def __enter__(self) -> "StepsShown":
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def advance(self, step: int) -> None:
        self._show(step)

    def report(self, step: int, metrics: object) -> None:
        pass


def train_run(run: Run, show: Callable[[int], None]) -> None:
    """Trains a run to its last step, from its newest checkpoint if it has one.

    Args:
        run: The run.
        show: Called with the number of finished steps.

    Raises:
        UserError: its folder holds another run.
        KeyboardInterrupt: it was asked to stop, and has saved.
    """
    config = run.config
    data = open_data(
        config.data,
        batch_size=config.batch_size,
        seed=config.seed,
        vocab_size=config.model.vocab_size,
    )
    workdir = prepare_workdir(run.folder, config, tokenizer=data.tokenizer_model)
    try:
        with _silence():
            objective = objective_of(run)
            if run.variant.method == "reconstruction":
                objective = with_initial_words(objective, config, data)
            done = train(config, objective, data, workdir, progress=StepsShown(show))
    finally:
        workdir.unlock()
    if done < config.num_steps:
        raise KeyboardInterrupt


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keeps a run's card off the terminal, where the experiment's bar is."""
    console = rich.get_console()
    former, console.quiet = console.quiet, True
    try:
        yield
    finally:
        console.quiet = former


def load_run(run: Run, mesh: Mesh | None = None) -> Pretrained:
    """Returns the encoder of a trained run: of the baselines the image tower, as a model.

    Raises:
        UserError: the folder holds a run of another config.
    """
    require(
        load_run_config(run.folder, PretrainConfig) == run.config,
        f"{run.folder} holds a run with other settings, perhaps of another version. "
        "Name another --output.",
    )
    if run.variant.method == "reconstruction":
        return load_pretrained(run.folder)
    mesh = mesh or make_mesh()
    init = functools.partial(objective_of(run).init_model, Operations(mesh))
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated(mesh)),
        jax.eval_shape(init),
    )
    step, model, stored = CheckpointReader(run.folder).restore_model(abstract)
    return _image_tower(run.config, step, model, stored["versions"], mesh)


def _image_tower(
    config: PretrainConfig, step: int, model: PyTree, versions: dict[str, str], mesh: Mesh
) -> Pretrained:
    return Pretrained(
        config=replaced(config, _IMAGE_TOWER),
        step=step,
        model=model.image_tower,
        mesh=mesh,
        tokenizer=None,
        versions=versions,
    )
