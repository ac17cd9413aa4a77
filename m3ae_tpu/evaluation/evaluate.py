"""All figures of a trained run: probes of its features beside baselines, and the pre-training task
on held-out data.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.data.labelled import LabelledExamples, read_labelled
from m3ae_tpu.data.shards import open_shards
from m3ae_tpu.data.text import Tokenizer
from m3ae_tpu.evaluation import heldout, probes
from m3ae_tpu.evaluation.features import image_features, pair_features, raw_pixels
from m3ae_tpu.evaluation.trained_run import TrainedRun
from m3ae_tpu.model.m3ae import M3AE
from m3ae_tpu.train.pretraining import init_model

TRAIN_SHARDS, TEST_SHARDS = "starter/train-*", "starter/heldout-*"

type Tell = Callable[[str], None]


def evaluate_run(
    run: TrainedRun,
    tell: Tell,
    *,
    train_shards: str = TRAIN_SHARDS,
    test_shards: str = TEST_SHARDS,
) -> dict[str, Any]:
    """Measures a run and returns a flat dictionary, ready for JSON. Shares are of 1.

    - `linear_probe/pretrained`, `.../untrained` (same config and seed, no step), `.../raw_pixels`,
      and `linear_probe/pooling`, chosen for the pretrained encoder on train and used for both;
      `knn/...` the same.
    - `linear_probe_image_and_text/pretrained`, `.../untrained`, `.../bag_of_words`, `.../pooling`:
      for images with captions. Only for runs with pairs.
    - `cross_validation/linear_probe/...`: accuracy on train, each fold classified by the others: to
      tune by.
    - `balanced/...`: the linear probes' accuracy as the mean over classes.
    - `poolings/...`: the pretrained encoder's test accuracy by pooling, for the curious; nothing is
      chosen by it.
    - `heldout/...`: see `heldout.heldout_reconstruction`.
    - `examples/train`, `examples/test`, `run/step`, `run/num_parameters`.

    Args:
        run: Whose newest checkpoint is measured.
        tell: Is given a line at each stage.
        train_shards: Labelled shards that probes learn from.
        test_shards: Labelled shards that everything is scored on; decide nothing.

    Raises:
        UserError: shards that cannot be read or have no labels.
    """
    tell("reading labelled examples")
    train, test = read_evaluation_examples(run, train_shards, test_shards)
    kinds = {source.kind for source in run.config.data.sources}
    results: dict[str, Any] = {
        "run/step": run.step,
        "run/num_parameters": sum(leaf.size for leaf in jax.tree.leaves(run.model)),
        "examples/train": len(train.label),
        "examples/test": len(test.label),
    }
    untrained = jax.jit(lambda: init_model(run.config))()
    if kinds & {"paired", "image"}:
        results |= _image_probes(run.model, untrained, train, test, run.config, tell)
    if "paired" in kinds:
        results |= _pair_probes(run.model, untrained, train, test, run.config, tell)
    tell("reconstructing held-out examples")
    titles = title_tokens(test, run.tokenizer)
    figures = heldout.heldout_reconstruction(run.model, test, run.config, title_tokens=titles)
    return results | {f"heldout/{name}": value for name, value in figures.items()}


def read_evaluation_examples(
    run: TrainedRun, train_shards: str = TRAIN_SHARDS, test_shards: str = TEST_SHARDS
) -> tuple[LabelledExamples, LabelledExamples]:
    """Reads the labelled examples that probes learn from and those that all is scored on.

    Raises:
        UserError: shards that cannot be read or have no labels.
    """
    train = read_examples(run, train_shards)
    return train, read_examples(run, test_shards, label_names=train.label_names)


def read_examples(
    run: TrainedRun, shards: str, *, label_names: tuple[str, ...] | None = None
) -> LabelledExamples:
    """Reads labelled examples at the run's image size and text length.

    Raises:
        UserError: shards that cannot be read or have no labels.
    """
    # As pairs were trained, where there are any: texts alone may be longer.
    length_by_kind = {source.kind: source.text_length for source in run.config.data.sources}
    return read_labelled(
        open_shards(shards),
        image_size=run.config.data.image_size,
        tokenizer=run.tokenizer,
        text_length=length_by_kind.get("paired", length_by_kind.get("text", 1)),
        label_names=label_names,
    )


def title_tokens(examples: LabelledExamples, tokenizer: Tokenizer) -> np.ndarray:
    """Returns which caption tokens spell the title: bool [examples, length]."""
    ids, is_piece, _ = tokenizer.encode(examples.title, examples.text_ids.shape[1])
    titles = [row[pieces].tolist() for row, pieces in zip(ids, is_piece, strict=True)]
    return heldout.title_positions(examples.text_ids, titles)


def _image_probes(
    pretrained: M3AE,
    untrained: M3AE,
    train: LabelledExamples,
    test: LabelledExamples,
    config: PretrainConfig,
    tell: Tell,
) -> dict[str, Any]:
    def features(model: M3AE) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        known, asked = (
            image_features(
                model, part.images, mean=config.data.image_mean, std=config.data.image_std
            )
            for part in (train, test)
        )
        return known, asked

    tell("features of images, pretrained encoder")
    known, asked = features(pretrained)
    tell("probes of images, pretrained encoder")
    folds = probes.assign_folds(train.group)
    scores = {pooling: _linear(known[pooling], asked[pooling], train, test) for pooling in known}
    near = {pooling: _knn(known[pooling], asked[pooling], train, test) for pooling in known}
    pooling = probes.choose_pooling(scores)
    knn_pooling = max(
        known, key=lambda name: probes.cross_validate_neighbors(known[name], train.label, folds)
    )
    tell("the same, untrained encoder")
    known, asked = features(untrained)
    pixels = raw_pixels(train.images), raw_pixels(test.images)
    linear = {
        "pretrained": scores[pooling],
        "untrained": _linear(known[pooling], asked[pooling], train, test),
        "raw_pixels": _linear(*pixels, train, test),
    }
    results: dict[str, Any] = {"linear_probe/pooling": pooling, "knn/pooling": knn_pooling}
    for name, score in linear.items():
        results[f"linear_probe/{name}"] = score.accuracy
        results[f"cross_validation/linear_probe/{name}"] = score.validation_accuracy
        results[f"balanced/linear_probe/{name}"] = score.balanced_accuracy
    results["knn/pretrained"] = near[knn_pooling]
    results["knn/untrained"] = _knn(known[knn_pooling], asked[knn_pooling], train, test)
    results["knn/raw_pixels"] = _knn(*pixels, train, test)
    for name in scores:
        results[f"poolings/linear_probe/pretrained/{name}"] = scores[name].accuracy
        results[f"poolings/knn/pretrained/{name}"] = near[name]
    return results


def _pair_probes(
    pretrained: M3AE,
    untrained: M3AE,
    train: LabelledExamples,
    test: LabelledExamples,
    config: PretrainConfig,
    tell: Tell,
) -> dict[str, Any]:
    def features(model: M3AE) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        known, asked = (
            pair_features(
                model,
                part.images,
                part.text_ids,
                part.is_valid,
                mean=config.data.image_mean,
                std=config.data.image_std,
            )
            for part in (train, test)
        )
        return known, asked

    prefix = "linear_probe_image_and_text"
    tell("features of images with captions, pretrained encoder")
    known, asked = features(pretrained)
    tell("probes of images with captions, pretrained encoder")
    scores = {pooling: _linear(known[pooling], asked[pooling], train, test) for pooling in known}
    pooling = probes.choose_pooling(scores)
    tell("the same, untrained encoder")
    known, asked = features(untrained)
    of_untrained = _linear(known[pooling], asked[pooling], train, test)
    tell("probe of the captions' words")
    folds = probes.assign_folds(train.group)
    of_words = probes.bag_of_words_probe(
        train.caption, train.label, test.caption, test.label, folds
    )
    results: dict[str, Any] = {f"{prefix}/pooling": pooling}
    for name, score in (
        ("pretrained", scores[pooling]),
        ("untrained", of_untrained),
        ("bag_of_words", of_words),
    ):
        results[f"{prefix}/{name}"] = score.accuracy
        results[f"balanced/{prefix}/{name}"] = score.balanced_accuracy
    for name, score in scores.items():
        results[f"poolings/{prefix}/pretrained/{name}"] = score.accuracy
    return results


def _linear(
    known: np.ndarray, asked: np.ndarray, train: LabelledExamples, test: LabelledExamples
) -> probes.ProbeScore:
    return probes.linear_probe(
        known, train.label, asked, test.label, probes.assign_folds(train.group)
    )


def _knn(
    known: np.ndarray, asked: np.ndarray, train: LabelledExamples, test: LabelledExamples
) -> float:
    return float(np.mean(probes.predict_neighbors(known, train.label, asked) == test.label))
