"""A cheap look at the features while a run goes on: k nearest neighbours on labelled examples."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool

from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.data.labelled import LabelledExamples, read_labelled
from m3ae_tpu.data.shards import open_shards
from m3ae_tpu.data.text import Tokenizer
from m3ae_tpu.errors import require
from m3ae_tpu.evaluation.features import image_features
from m3ae_tpu.evaluation.probes import assign_folds, predict_neighbors
from m3ae_tpu.model.m3ae import M3AE


def knn_accuracy(
    model: M3AE,
    train: LabelledExamples,
    test: LabelledExamples,
    *,
    mean: Sequence[float],
    std: Sequence[float],
) -> float:
    """Returns the share of `test` that the mean of the patches classifies right by its neighbours
    in `train`.

    Args:
        model: In training; it is only read.
        train: Labelled images.
        test: Others, with the same classes.
        mean: Of each channel, on a scale of 0 to 1.
        std: Like `mean`.
    """
    known = image_features(model, train.images, mean=mean, std=std)["mean"]
    asked = image_features(model, test.images, mean=mean, std=std)["mean"]
    return float(np.mean(predict_neighbors(known, train.label, asked) == test.label))


def make_probe(config: PretrainConfig) -> Callable[[M3AE], dict[str, float]] | None:
    """Returns what scores a model as `config.probe` asks, as metrics; None where it asks for
    nothing.

    Raises:
        UserError: shards that cannot be read or have no labels.
    """
    if config.probe.every_steps == 0:
        return None
    train, test = read_probe_examples(config, Tokenizer(config.data.tokenizer))
    statistics = {"mean": config.data.image_mean, "std": config.data.image_std}
    return lambda model: {"probe/knn_accuracy": knn_accuracy(model, train, test, **statistics)}


def read_probe_examples(
    config: PretrainConfig, tokenizer: Tokenizer
) -> tuple[LabelledExamples, LabelledExamples]:
    """Reads what `config.probe` names: examples to learn from and to be scored on.

    Raises:
        UserError: shards that cannot be read or have no labels.
    """
    probe = config.probe
    how = {
        "image_size": config.data.image_size,
        "tokenizer": tokenizer,
        "text_length": 1,
        "limit": probe.max_examples,
    }
    train = read_labelled(open_shards(probe.train_shards), **how)
    if probe.test_shards:
        return train, read_labelled(
            open_shards(probe.test_shards), **how, label_names=train.label_names
        )
    is_validation = assign_folds(train.group) == 0
    require(
        0 < int(is_validation.sum()) < len(is_validation),
        f"probe.train_shards = {probe.train_shards} gives {len(is_validation)} examples whose groups do not divide "
        "into a part to learn from and one to be scored on. Set --probe.test_shards, or more --probe.max_examples.",
    )
    return take(train, ~is_validation), take(train, is_validation)


def take(examples: LabelledExamples, is_taken: Bool[np.ndarray, " examples"]) -> LabelledExamples:
    """Returns the examples where `is_taken`, in their order."""
    rows = np.flatnonzero(is_taken)
    picked = {}
    for field in dataclasses.fields(examples):
        value = getattr(examples, field.name)
        if isinstance(value, np.ndarray):
            picked[field.name] = value[rows]
        elif field.name != "label_names":
            picked[field.name] = tuple(value[row] for row in rows)
    return dataclasses.replace(examples, **picked)
