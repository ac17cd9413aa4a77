"""The start of fine-tuning: what comes from a pre-trained model, and the classes of the data."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence

import jax
import numpy as np

from m3ae_tpu.config import FinetuneConfig, ModelConfig, PretrainConfig
from m3ae_tpu.config.tree import leaves
from m3ae_tpu.data.labelling import count_classes
from m3ae_tpu.data.shards import Shards
from m3ae_tpu.errors import require
from m3ae_tpu.files import atomic_write
from m3ae_tpu.model.classifier import Classifier
from m3ae_tpu.parallel.processes import is_leader
from m3ae_tpu.pretrained.pretrained import Pretrained
from m3ae_tpu.run.checkpoint_reader import named_arrays
from m3ae_tpu.run.workdir import saved_steps
from m3ae_tpu.storage.mirror import address_of

INITIAL = "initial_model.json"
"""File of a workdir that says which model the run began with."""
# How a network is computed is for each run to choose, what it is not.
_OWN_FIELDS = ("compute_dtype", "parameter_dtype", "remat", "unroll")


def settings_of(config: FinetuneConfig, pretrained: PretrainConfig) -> FinetuneConfig:
    """Returns a config with the encoder, image size and normalisation of a pre-trained model."""
    own = {name: getattr(config.model, name) for name in _OWN_FIELDS}
    model = dataclasses.replace(
        pretrained.model,
        vocab_size=0,
        decoder=dataclasses.replace(pretrained.model.decoder, num_layers=0),
        stored_decoder_positions=0,
        stored_text_positions=0,
        **own,
    )
    data = dataclasses.replace(
        config.data,
        image_size=pretrained.data.image_size,
        image_mean=pretrained.data.image_mean,
        image_std=pretrained.data.image_std,
    )
    return dataclasses.replace(config, model=model, data=data)


def require_same_network(config: FinetuneConfig, pretrained: ModelConfig, name: str) -> None:
    """Checks that the command line leaves the network of a pre-trained model as it is.

    Args:
        config: All values of the command line applied.
        pretrained: The network as `settings_of` gives it.
        name: The pre-trained model, for the message.

    Raises:
        UserError: another network was asked for.
    """
    now, was = leaves(config.model), leaves(pretrained)
    changed = [field for field in now if now[field] != was[field] and field not in _OWN_FIELDS]
    require(
        not changed,
        f"model.{changed[0] if changed else ''} is decided by --model = {name}, which has "
        f"{was[changed[0]] if changed else ''}. Leave it out, or train from scratch: without "
        "--model.",
    )


def encoder_weights(pretrained: Pretrained) -> Callable[[Classifier], Classifier]:
    """Returns a function that puts a pre-trained encoder in the place of a classifier's.

    Raises:
        UserError: the model has learned texts only.
    """
    require(
        pretrained.task.has_images,
        "--model has learned from texts only, and fine-tuning learns classes of images. "
        "Name a model that was trained on images.",
    )
    source = {name: np.asarray(leaf) for name, leaf in named_arrays(pretrained.model).items()}

    def with_weights(model: Classifier) -> Classifier:
        def placed(path, leaf: jax.Array) -> jax.Array:
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            _, is_encoder, name = name.partition("m3ae.")
            if not is_encoder:
                return leaf
            array = source[name].astype(leaf.dtype)
            return jax.make_array_from_callback(leaf.shape, leaf.sharding, array.__getitem__)

        return jax.tree_util.tree_map_with_path(placed, model)

    return with_weights


def with_classes(config: FinetuneConfig, shards: Sequence[Shards]) -> FinetuneConfig:
    """Returns the config with the names of its classes: those of the training records, or its own.

    Args:
        config: The run's.
        shards: Those of each source.

    Raises:
        UserError: records without a class, a single class, or classes that the config leaves out.
    """
    found: dict[str, None] = {}
    for of_source in dict.fromkeys(shards):
        found |= dict.fromkeys(count_classes(of_source))
    names = tuple(sorted(found))
    require(
        len(names) > 1,
        f"data.sources hold a single class, {', '.join(names)}, and a classifier tells classes "
        "apart. Name shards of two or more classes.",
    )
    if not config.classes:
        return dataclasses.replace(config, classes=names)
    _require_known(names, config.classes, "data.sources hold", "Add it to --classes.")
    return config


def require_known_classes(config: FinetuneConfig, shards: Shards) -> None:
    """Checks that the test examples have no other classes than the training examples.

    Raises:
        UserError: they have.
    """
    place = f"evaluation.shards = {shards.pattern} hold"
    fix = "Set --evaluation.shards to shards of the same classes, or to nothing: no scores then."
    _require_known(tuple(count_classes(shards)), config.classes, place, fix)


def _require_known(names: Sequence[str], classes: Sequence[str], place: str, fix: str) -> None:
    unknown = sorted(set(names).difference(classes))
    more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
    require(
        not unknown,
        f"{place} the class {unknown[0] if unknown else ''}{more}, which is not among the run's "
        f"{len(classes)}. {fix}",
    )


def record_initial_model(workdir: pathlib.Path, digest: str) -> None:
    """Writes which model a run begins with, and refuses another one for a run that is there.

    Args:
        workdir: The run's.
        digest: SHA-256 of the model's parameters; "" from scratch.

    Raises:
        UserError: the run began with another model.
    """
    path = workdir / INITIAL
    if path.exists() and saved_steps(workdir):
        was = json.loads(path.read_text())["sha256"]
        require(
            was == digest,
            f"--model has other weights (SHA-256 {_shown(digest)}) than the model that the run in "
            f"{address_of(workdir)} began with ({_shown(was)}). Give that one, or another "
            "--workdir.",
        )
    elif is_leader():
        atomic_write(path, json.dumps({"sha256": digest}) + "\n")


def _shown(digest: str) -> str:
    return digest[:12] or "none, from scratch"
