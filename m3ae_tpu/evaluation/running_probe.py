"""A quick probe of the features while a run trains: nearest neighbours on labelled examples."""

import functools
from collections.abc import Callable

import numpy as np
from jax.sharding import Mesh

from m3ae_tpu.config import ProbeConfig
from m3ae_tpu.data.labelled import LabelledExamples, read_labelled
from m3ae_tpu.data.shards import Shards
from m3ae_tpu.data.sources import OpenData
from m3ae_tpu.errors import UserError
from m3ae_tpu.evaluation.features import pool_images
from m3ae_tpu.model.inputs import Normalizer
from m3ae_tpu.model.m3ae import M3AE
from m3ae_tpu.parallel.row_map import RowMap
from m3ae_tpu.probing.folds import explain_no_folds, make_folds
from m3ae_tpu.probing.neighbors import NUM_NEIGHBORS, neighbors_classifier


def make_probe(
    probe: ProbeConfig, data: OpenData, mesh: Mesh
) -> Callable[[M3AE], dict[str, float]]:
    """Returns a function that scores a model in training, as metrics.

    `probe/knn_accuracy` is the share of the test images whose class ten nearest training images
    vote for, by the mean of the patch tokens.

    Args:
        probe: Names the labelled examples.
        data: The run's; shards that it has open are not opened again.
        mesh: The run's.

    Raises:
        UserError: shards that cannot be read, have no labels, or hold too few examples.
    """
    train, test = read_probe_examples(probe, data)
    normalizer = Normalizer.of_data(data.config)
    pool = RowMap(functools.partial(pool_images, normalizer=normalizer), mesh)

    def score(model: M3AE) -> dict[str, float]:
        features, test_features = (pool(model, each.images)["mean"] for each in (train, test))
        classifier = neighbors_classifier(min(NUM_NEIGHBORS, len(train)), mesh)
        classifier.fit(features, train.labels)
        is_right = classifier.predict(test_features) == test.labels
        return {"probe/knn_accuracy": float(np.mean(is_right))}

    return score


def read_probe_examples(
    probe: ProbeConfig, data: OpenData
) -> tuple[LabelledExamples, LabelledExamples]:
    """Reads training and test examples.

    Without `test_shards` a fifth of the training examples is held out, whole groups at a time; more
    if there are fewer than five groups.

    Raises:
        UserError: shards that cannot be read, have no labels, or hold too few examples.
    """

    def read(shards: Shards, label_names: tuple[str, ...] | None = None) -> LabelledExamples:
        indices = range(min(probe.max_examples, len(shards)))
        size = data.config.image_size
        return read_labelled(shards, image_size=size, indices=indices, label_names=label_names)

    shards = data.open(probe.train_shards)
    train = read(shards)
    folds = make_folds(train.labels, train.groups)
    # With a test set nothing is split, and classes that can be told apart are enough.
    is_enough = len(np.unique(train.labels)) > 1 if probe.test_shards else bool(folds)
    if not is_enough:
        place, more = f"probe.train_shards = {shards.pattern}", ""
        if len(train) < len(shards):
            place = f"The first {len(train):,} of {len(shards):,} records of {place}"
            more = f" Or read more: --probe.max_examples={len(shards)}."
        reason = explain_no_folds(train.labels, train.groups, train.label_names, place)
        raise UserError(f"{reason}{more} To train without a probe, set --probe.every_steps=0.")
    if probe.test_shards:
        return train, read(data.open(probe.test_shards), label_names=train.label_names)
    others, held_out = folds[0]
    return train.take(others), train.take(held_out)
