"""Models read from a run's workdir or from a model folder."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from m3ae_tpu.config import FinetuneConfig, PretrainConfig
from m3ae_tpu.config.checks import FieldError
from m3ae_tpu.data.text import Tokenizer
from m3ae_tpu.errors import UserError, require
from m3ae_tpu.files import Place, place
from m3ae_tpu.model.classifier import Classifier
from m3ae_tpu.parallel.mesh import make_mesh, replicated
from m3ae_tpu.parallel.operations import Operations
from m3ae_tpu.pretrained.model_folder import VOCABULARY, is_model_folder, read_parameters
from m3ae_tpu.pretrained.pretrained import Pretrained
from m3ae_tpu.pretrained.task import ReconstructionTask
from m3ae_tpu.run.checkpoint_reader import CheckpointReader
from m3ae_tpu.run.claim import files_of
from m3ae_tpu.run.shipped import require_model_there
from m3ae_tpu.run.workdir import CONFIG, TOKENIZER, load_run_config, require_tokenizer_fits
from m3ae_tpu.train.pretraining import init_model
from m3ae_tpu.train.step import model_key

_MOST_PATCHES = 1_000
"""Patches on a side of an image, above which positions alone fill the memory."""


def load_pretrained(folder: pathlib.Path) -> Pretrained:
    """Loads config, tokenizer and model of a run or a model folder, onto all devices.

    Of a run the newest undamaged checkpoint counts; of a fine-tuned one, its encoder.

    Raises:
        UserError: the folder holds neither, or its files do not fit together.
    """
    config, mesh = load_config(folder), make_mesh()
    if is_finetuned(folder):
        _, step, classifier, run = _restore_classifier(folder)
        model = classifier.m3ae
    else:
        abstract = _abstract(functools.partial(init_model, config.model, config.seed), mesh)
        if is_model_folder(folder):
            step, model, run = read_parameters(folder, abstract)
        else:
            step, model, run = CheckpointReader(folder).restore_model(abstract)
    has_texts = ReconstructionTask.of_run(config).has_texts
    return Pretrained(
        config=config,
        step=step,
        model=model,
        mesh=mesh,
        tokenizer=_tokenizer_of(folder, config, run) if has_texts else None,
        versions=run["versions"],
    )


def _tokenizer_of(folder: pathlib.Path, config: PretrainConfig, run: dict[str, Any]) -> Tokenizer:
    """Returns the tokenizer in a folder of a model, or the one that the config names.

    Raises:
        UserError: neither is the one that the model was trained with.
    """
    copies = (folder / name for name in (TOKENIZER, VOCABULARY))
    copy = next((str(copy) for copy in copies if copy.exists()), "")
    try:
        tokenizer = Tokenizer(copy or config.data.tokenizer)
        require_tokenizer_fits(run, tokenizer.path, tokenizer.model)
    except UserError:
        if copy:
            raise
        raise UserError(
            f"{folder} lacks the tokenizer of its model ({TOKENIZER} or {VOCABULARY}), and "
            f"data.tokenizer = {config.data.tokenizer} is another. Copy the whole folder again."
        ) from None
    return tokenizer


def load_config(folder: pathlib.Path) -> PretrainConfig:
    """Returns the settings of a model: those that it was pre-trained with.

    Of a fine-tuned model the settings of its encoder, with the images that it was fine-tuned on.

    Raises:
        UserError: the folder holds no model.
    """
    require_model_there("", folder)
    if not is_finetuned(folder):
        return load_run_config(folder, PretrainConfig)
    config = load_run_config(folder, FinetuneConfig)
    return PretrainConfig(
        seed=config.seed,
        num_steps=config.num_steps,
        batch_size=config.batch_size,
        model=config.model,
        data=config.data,
    )


def is_finetuned(folder: pathlib.Path) -> bool:
    """Returns whether a folder holds a fine-tuning run."""
    try:
        values = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and "classes" in values


def load_classifier(folder: pathlib.Path) -> tuple[FinetuneConfig, int, Classifier]:
    """Loads settings, step and model of a fine-tuning run, onto all devices.

    Raises:
        UserError: the folder holds none, or nothing was saved yet.
    """
    require(
        is_finetuned(folder),
        f"{folder} does not hold a run of pipelines.finetune. Name the workdir of one.",
    )
    return _restore_classifier(folder)[:3]


def _restore_classifier(
    folder: pathlib.Path,
) -> tuple[FinetuneConfig, int, Classifier, dict[str, Any]]:
    config, mesh = load_run_config(folder, FinetuneConfig), make_mesh()
    abstract = _abstract(
        lambda operations: Classifier(config, key=model_key(config.seed), operations=operations),
        mesh,
    )
    return config, *CheckpointReader(folder).restore_model(abstract)


def _abstract(init: Callable[[Operations], Any], mesh: Mesh) -> Any:
    """Returns shapes and dtypes of a model that lies whole on every device of a mesh."""
    shapes = jax.eval_shape(lambda: init(Operations(mesh)))
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated(mesh)), shapes
    )


def has_model(folder: pathlib.Path) -> bool:
    """Returns whether a folder is a model folder, or a run has saved anything yet."""
    return is_model_folder(folder) or bool(CheckpointReader(folder).steps())


def load(path: Place, *, image_size: int | None = None) -> Pretrained:
    """Loads a model with its tokenizer and preprocessing, for use from Python.

        model = m3ae_tpu.load("starter")
        features = model.encode(images=["cat.jpg"], texts=["a cat on a sofa"])
        features.image_mean, features.text_mean, features.cls, features.tokens

    Args:
        path: The workdir of a run or a model folder, also gs://BUCKET/FOLDER; or `starter`, the
            model that ships with the package.
        image_size: Another side of the square images than in training, pixels; a multiple of the
            patch size.

    Raises:
        UserError: the folder holds no model, its files do not fit together, or the size does not
            fit the patches.
    """
    with files_of(place("path", str(path))) as folder:
        model = load_pretrained(folder)
    if image_size is None:
        return model
    patch = model.config.model.patch_size
    require(
        image_size > 0 and image_size % patch == 0,
        f"image_size = {image_size} is not a multiple of the model's patches of {patch} pixels. "
        f"Set {max(1, round(image_size / patch)) * patch}.",
    )
    require(
        image_size <= _MOST_PATCHES * patch,
        f"image_size = {image_size} gives more than {_MOST_PATCHES:,} patches of {patch} pixels a "
        f"side. Set a size near that of the training, {model.config.data.image_size}.",
    )
    try:
        data = dataclasses.replace(model.config.data, image_size=image_size)
        return dataclasses.replace(model, config=dataclasses.replace(model.config, data=data))
    except FieldError as error:
        raise UserError(str(error)) from None
