"""Features to probe: those of a model's encoder, of raw pixels, or of a user's files."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int32, UInt8

from m3ae_tpu.batch import Rows
from m3ae_tpu.data.labelled import LabelledExamples, read_labelled
from m3ae_tpu.data.shards import open_shards
from m3ae_tpu.errors import UserError, require
from m3ae_tpu.evaluation.features import pool_images, thumbnails
from m3ae_tpu.evaluation.probe_files import FeatureFiles
from m3ae_tpu.model.inputs import make_inputs
from m3ae_tpu.model.m3ae import M3AE
from m3ae_tpu.parallel.mesh import make_mesh
from m3ae_tpu.parallel.row_map import RowMap
from m3ae_tpu.pretrained.pretrained import Pretrained
from m3ae_tpu.probing.descent import Examples
from m3ae_tpu.probing.folds import explain_no_folds, make_folds
from m3ae_tpu.probing.scores import Targets

TRAIN_SHARDS, TEST_SHARDS = "starter/train-*", "starter/heldout-*"

type Pair = tuple[np.ndarray, np.ndarray]
"""Features of training and of test examples."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Features of the examples by one encoder."""

    name: str
    vectors: Callable[[], Mapping[str, Pair]]
    """Computes one vector for each example, by each pooling."""
    tokens: Callable[[], tuple[Examples, Examples]] | None
    """Makes the tokens of each example; None for a source without tokens."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeTask:
    """Labelled examples and the encoders that are compared on them."""

    sources: tuple[Source, ...]
    """The first is the one that is probed; the others are compared with it."""
    targets: Targets
    label_names: tuple[str, ...]
    images: UInt8[np.ndarray, "test_examples size size 3"] | None
    """Images of the test examples, where there are any."""
    mesh: Mesh
    facts: Mapping[str, Any]
    """The model or files, and the examples: for `probe.json`."""


def model_task(
    run: Pretrained,
    path: str,
    train_shards: str,
    test_shards: str,
    *,
    has_baselines: bool,
    max_cache_bytes: int,
) -> ProbeTask:
    """Returns the task of a model's features of labelled shards.

    Args:
        run: The model.
        path: Where it comes from.
        train_shards: Labelled shards to learn from; empty: the starter set's.
        test_shards: Labelled shards to score on; empty: the starter set's, or a fifth of
            `train_shards`.
        has_baselines: Whether an untrained encoder and raw pixels are probed too.
        max_cache_bytes: Most memory for the tokens of all examples; above it the encoder runs
            inside the step.

    Raises:
        UserError: shards that cannot be read or have no labels, too few examples, labels that only
            the test examples have, or a model that has not learned images.
    """
    require(
        run.task.has_images,
        f"--model = {path} has learned texts only, and probes here are of images. Extract features "
        "of texts (pipelines.extract_features) and name them: --train_features, --train_labels.",
    )
    read = functools.partial(read_labelled, image_size=run.config.data.image_size)
    train_set = open_shards(train_shards or TRAIN_SHARDS)
    train = read(train_set)
    if test_shards or not train_shards:
        test_set = open_shards(test_shards or TEST_SHARDS)
        test, test_name = read(test_set, label_names=train.label_names), test_set.pattern
        test_digest = test_set.digest
    else:
        kept, held_out = split(train.labels, train.groups, train.label_names, train_set.pattern)
        train, test = train.take(kept), train.take(held_out)
        test_name, test_digest = f"a fifth of {train_set.pattern}", train_set.digest
    targets = make_targets(
        train.labels, test.labels, train.groups, train.label_names, train_set.pattern
    )
    sources = [_model_source("pretrained", run, run.model, train, test, max_cache_bytes)]
    if has_baselines:
        untrained = run.init_model()
        sources.append(_model_source("untrained", run, untrained, train, test, max_cache_bytes))
        sources.append(_pixel_source(run.mesh, train, test))
    facts = {
        "model": {"path": path, "step": run.step, "sha256": run.digest},
        "train": {"shards": train_set.pattern, "digest": train_set.digest, "examples": len(train)},
        "test": {"shards": test_name, "digest": test_digest, "examples": len(test)},
    }
    return ProbeTask(
        sources=tuple(sources),
        targets=targets,
        label_names=train.label_names,
        images=test.images,
        mesh=run.mesh,
        facts=facts,
    )


def file_task(train: FeatureFiles, test: FeatureFiles | None) -> ProbeTask:
    """Returns the task of features in files.

    Args:
        train: Features and labels to learn from.
        test: The same to score on; None: a fifth of the training examples.

    Raises:
        UserError: the two do not fit together, or hold too little.
    """
    place, train_labels = str(train.path), train.labels
    test_labels = train_labels if test is None else test.labels
    if train_labels.dtype.kind != test_labels.dtype.kind:
        train_labels, test_labels = train_labels.astype(str), test_labels.astype(str)
    classes = np.unique(train_labels)
    names = tuple(map(str, classes.tolist()))
    labels = np.searchsorted(classes, train_labels).astype(np.int32)
    groups = np.arange(len(labels), dtype=np.int32)
    if test is None:
        kept, held_out = split(labels, groups, names, place)
        test_name = f"a fifth of {place}"
        pairs = {name: (array[kept], array[held_out]) for name, array in train.arrays.items()}
        labels, test_labels = labels[kept], labels[held_out]
    else:
        test_name = str(test.path)
        unknown = [str(label) for label in np.setdiff1d(test_labels, classes).tolist()]
        require(
            not unknown,
            f"{test.path} has the label {', '.join(unknown[:3])}, which is not among the "
            f"{len(names)} classes of {place}. Name features of the same classes.",
        )
        shapes = [
            {name: array.shape[1:] for name, array in files.arrays.items()}
            for files in (train, test)
        ]
        require(
            shapes[0] == shapes[1],
            f"{test.path} has features of the shape {_shown(shapes[1])}, and {place} of "
            f"{_shown(shapes[0])}. Name features of the same model and layer.",
        )
        pairs = {name: (train.arrays[name], test.arrays[name]) for name in train.arrays}
        test_labels = np.searchsorted(classes, test_labels).astype(np.int32)
    targets = make_targets(
        labels, test_labels, np.arange(len(labels), dtype=np.int32), names, place
    )
    vectors = {name: pair for name, pair in pairs.items() if pair[0].ndim == 2}
    tokens = [pair for pair in pairs.values() if pair[0].ndim == 3]

    def examples() -> tuple[Examples, Examples]:
        train, test = (Examples(array, array.shape[2]) for array in tokens[0])
        return train, test

    source = Source(
        name="these features", vectors=lambda: vectors, tokens=examples if tokens else None
    )
    return ProbeTask(
        sources=(source,),
        targets=targets,
        label_names=names,
        images=None,
        mesh=make_mesh(),
        facts={
            "train": {"features": place, "examples": len(labels)},
            "test": {"features": test_name, "examples": len(test_labels)},
        },
    )


def split(
    labels: Int32[np.ndarray, " examples"],
    groups: Int32[np.ndarray, " examples"],
    label_names: tuple[str, ...],
    place: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the examples to learn from, and a fifth to score on; no group lies in both.

    Raises:
        UserError: there is too little to split.
    """
    folds = make_folds(labels, groups)
    require(bool(folds), explain_no_folds(labels, groups, label_names, place))
    return folds[0]


def make_targets(
    labels: Int32[np.ndarray, " train_examples"],
    test_labels: Int32[np.ndarray, " test_examples"],
    groups: Int32[np.ndarray, " train_examples"],
    label_names: tuple[str, ...],
    place: str,
) -> Targets:
    """Returns the targets of a probe.

    Raises:
        UserError: a single class, or too few examples for cross-validation.
    """
    targets = Targets.of(labels, test_labels, groups)
    if not targets.folds:
        raise UserError(explain_no_folds(labels, groups, label_names, place))
    return targets


def _model_source(
    name: str,
    run: Pretrained,
    model: M3AE,
    train: LabelledExamples,
    test: LabelledExamples,
    max_cache_bytes: int,
) -> Source:
    normalizer, size = run.task.normalizer, run.config.data.image_size
    width = run.config.model.encoder.width
    pool = RowMap(functools.partial(pool_images, normalizer=normalizer), run.mesh)

    def embed(model: M3AE, images: UInt8[Array, "batch size size 3"]) -> Array:
        features = model.encode(make_inputs(Rows(images=images), normalizer, jnp.float32))
        return features.tokens[:, 1:].astype(jnp.float32)

    @functools.cache
    def vectors() -> dict[str, Pair]:
        of_train, of_test = (pool(model, each.images) for each in (train, test))
        return {pooling: (of_train[pooling], of_test[pooling]) for pooling in of_train}

    def tokens() -> tuple[Examples, Examples]:
        num_tokens = (size // run.config.model.patch_size) ** 2
        num_bytes = (len(train) + len(test)) * num_tokens * width * 2
        if num_bytes > max_cache_bytes:
            of_train, of_test = (
                Examples(each.images, width, embed, model) for each in (train, test)
            )
        else:
            # Half the memory; the error is a thousandth of what training makes of it.
            keep = RowMap(lambda model, images: embed(model, images).astype(jnp.float16), run.mesh)
            of_train, of_test = (
                Examples(keep(model, each.images), width) for each in (train, test)
            )
        return of_train, of_test

    return Source(name=name, vectors=vectors, tokens=tokens)


def _pixel_source(mesh: Mesh, train: LabelledExamples, test: LabelledExamples) -> Source:
    @functools.cache
    def vectors() -> dict[str, Pair]:
        shrink = RowMap(lambda _, images: thumbnails(images), mesh)
        return {"pixels": (shrink(None, train.images), shrink(None, test.images))}

    return Source(name="raw pixels", vectors=vectors, tokens=None)


def _shown(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
