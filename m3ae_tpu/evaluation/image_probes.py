"""Probes of images alone: a linear classifier and nearest neighbours of frozen features."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from m3ae_tpu.evaluation.baselines import Pair, random_projection
from m3ae_tpu.evaluation.features import (
    IMAGE_POOLINGS,
    ROWS_PER_DEVICE,
    pool_images,
    thumbnails,
)
from m3ae_tpu.evaluation.probe_rows import probe_rows
from m3ae_tpu.evaluation.protocol import Figures, Row, Subject
from m3ae_tpu.parallel.row_map import RowMap
from m3ae_tpu.probing.confusion import describe_confusion
from m3ae_tpu.probing.folds import explain_no_folds
from m3ae_tpu.probing.linear import start_linear_probes
from m3ae_tpu.probing.neighbors import NUM_NEIGHBORS, neighbors_probe, num_neighbors
from m3ae_tpu.probing.scores import ProbeScore, Targets


def _neighbors_probes(
    targets: Targets, features: Mapping[str, Pair[np.ndarray]]
) -> Callable[[], dict[str, ProbeScore]]:
    scores = {name: neighbors_probe(targets, *pair) for name, pair in features.items()}
    return lambda: scores


_TITLES = {"linear_probe": "Linear probe, images", "knn": "{} nearest neighbours, images"}
_POOLINGS = {"linear_probe": "cls_mean_max", "knn": "cls_quarters"}
"""Best on images that the encoder had not seen, see docs/results/starter.md. Cross-validation on
those that it was trained on flatters the class token alone.
"""
_BASELINES = ("untrained", "random_projection", "raw_pixels")
_NOTE = "Random projection: of the raw pixels, to as many numbers as the features have."


def start(subject: Subject) -> Callable[[], Figures]:
    """Measures accuracies; nothing for a run without images.

    - `linear_probe/pretrained`, `.../untrained` (same network and seed, random weights),
      `.../raw_pixels` (thumbnails).
    - `linear_probe/pooling`: the same for both encoders; `linear_probe/num_features`: numbers of an
      image.
    - `linear_probe/random_projection`: of the thumbnails, to `num_features` numbers.
    - `cross_validation/linear_probe/...`: mean accuracy of folds of the training examples, each
      classified by a fit on the others: to tune by.
    - `balanced/linear_probe/...`: the mean over the classes.
    - `confusion/linear_probe`: of the pretrained encoder, see `describe_confusion`.
    - `poolings/linear_probe/pretrained/...`: test accuracy of every pooling; nothing is chosen by
      it.
    - `knn/...`: accuracy and pooling of nearest neighbours; `knn/num_neighbors`: ten, or as many as
      the smallest fold leaves.
    """
    if not subject.run.task.has_images:
        return dict
    if not subject.targets.folds:
        train = subject.train
        reason = explain_no_folds(
            train.labels, train.groups, train.label_names, subject.train_shards.pattern
        )
        return lambda: {f"left_out/{name}": reason for name in _POOLINGS}
    targets, mesh, normalizer = subject.targets, subject.run.mesh, subject.run.task.normalizer
    pool = RowMap(
        functools.partial(pool_images, normalizer=normalizer),
        mesh,
        rows_per_device=ROWS_PER_DEVICE,
    )
    shrink = RowMap(lambda _, images: thumbnails(images), mesh)
    examples = subject.train, subject.test
    probes = {
        "linear_probe": functools.partial(start_linear_probes, subject.threads),
        "knn": _neighbors_probes,
    }

    subject.report("features of images, pretrained encoder")
    train, test = (pool(subject.run.model, each.images) for each in examples)
    features = {pooling: (train[pooling], test[pooling]) for pooling in train}
    pretrained = {name: probe(targets, features) for name, probe in probes.items()}
    subject.report("features of images, untrained encoder")
    train, test = (pool(subject.untrained, each.images) for each in examples)
    pixels = shrink(None, examples[0].images), shrink(None, examples[1].images)
    baselines = {}
    for name, probe in probes.items():
        untrained = train[_POOLINGS[name]], test[_POOLINGS[name]]
        features = {
            "untrained": untrained,
            "random_projection": random_projection(pixels, untrained[0].shape[1]),
            "raw_pixels": pixels,
        }
        baselines[name] = probe(targets, features)

    def wait() -> Figures:
        figures: Figures = {"knn/num_neighbors": num_neighbors(targets)}
        for name, pooling in _POOLINGS.items():
            size = train[pooling].shape[1]
            figures[f"{name}/pooling"], figures[f"{name}/num_features"] = pooling, size
            by_pooling = pretrained[name]()
            scores = {"pretrained": by_pooling[pooling], **baselines[name]()}
            figures |= {f"{name}/{who}": score.accuracy for who, score in scores.items()}
            if name == "linear_probe":
                for who, score in scores.items():
                    figures[f"cross_validation/{name}/{who}"] = score.validation_accuracy
                    figures[f"balanced/{name}/{who}"] = score.balanced_accuracy
                figures[f"confusion/{name}"] = describe_confusion(
                    subject.test.labels, scores["pretrained"].predicted, subject.train.label_names
                )
            for each, score in by_pooling.items():
                figures[f"poolings/{name}/pretrained/{each}"] = score.accuracy
        return figures

    return wait


def rows(figures: Mapping[str, Any]) -> list[Row]:
    """Returns both probes beside their baselines, and their accuracy with every pooling."""
    shown = []
    for probe, title in _TITLES.items():
        title = title.format(figures.get("knn/num_neighbors", NUM_NEIGHBORS))
        shown += probe_rows(figures, probe, title, _BASELINES, IMAGE_POOLINGS, note=_NOTE)
    return shown
