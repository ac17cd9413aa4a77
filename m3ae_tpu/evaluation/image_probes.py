"""Probes of images alone: a linear classifier and nearest neighbours of frozen features."""

import functools
from collections.abc import Mapping
from typing import Any

from m3ae_tpu.evaluation.features import IMAGE_POOLINGS, pool_images, thumbnails
from m3ae_tpu.evaluation.protocol import Figures, Row, Subject
from m3ae_tpu.parallel.row_map import RowMap
from m3ae_tpu.probing.confusion import describe_confusion
from m3ae_tpu.probing.folds import explain_no_folds
from m3ae_tpu.probing.linear import linear_probe
from m3ae_tpu.probing.neighbors import NUM_NEIGHBORS, neighbors_probe, num_neighbors
from m3ae_tpu.probing.scores import choose

_PROBES = {"linear_probe": linear_probe, "knn": neighbors_probe}
_TITLES = {"linear_probe": "Linear probe, images", "knn": "{} nearest neighbours, images"}
_BASELINES = ("untrained", "raw_pixels")


def run(subject: Subject) -> Figures:
    """Measures accuracies; nothing for a run without images.

    - `linear_probe/pretrained`, `.../untrained` (same config and seed, before the first step),
      `.../raw_pixels` (thumbnails).
    - `linear_probe/pooling`: chosen for the pretrained encoder by cross-validation on the training
      examples, and used for both encoders.
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
        return {}
    if not subject.targets.folds:
        train = subject.train
        reason = explain_no_folds(
            train.labels, train.groups, train.label_names, subject.train_shards.pattern
        )
        return {f"left_out/{name}": reason for name in _PROBES}
    mesh, normalizer = subject.run.mesh, subject.run.task.normalizer
    pool = RowMap(functools.partial(pool_images, normalizer=normalizer), mesh)
    shrink = RowMap(lambda _, images: thumbnails(images), mesh)
    examples = subject.train, subject.test

    subject.report("features of images, pretrained encoder")
    train, test = (pool(subject.run.model, each.images) for each in examples)
    subject.report("probes of images, pretrained encoder")
    pretrained = {
        name: {pooling: probe(subject.targets, train[pooling], test[pooling]) for pooling in train}
        for name, probe in _PROBES.items()
    }
    subject.report("features of images, untrained encoder")
    train, test = (pool(subject.untrained, each.images) for each in examples)
    pixels = [shrink(None, each.images) for each in examples]

    subject.report("probes of images, untrained encoder and raw pixels")
    figures: Figures = {"knn/num_neighbors": num_neighbors(subject.targets)}
    for name, probe in _PROBES.items():
        pooling = choose(pretrained[name])
        scores = {
            "pretrained": pretrained[name][pooling],
            "untrained": probe(subject.targets, train[pooling], test[pooling]),
            "raw_pixels": probe(subject.targets, *pixels),
        }
        figures[f"{name}/pooling"] = pooling
        figures |= {f"{name}/{who}": score.accuracy for who, score in scores.items()}
        if name == "linear_probe":
            for who, score in scores.items():
                figures[f"cross_validation/{name}/{who}"] = score.validation_accuracy
                figures[f"balanced/{name}/{who}"] = score.balanced_accuracy
            figures[f"confusion/{name}"] = describe_confusion(
                subject.test.labels, scores["pretrained"].predicted, subject.train.label_names
            )
        for pooling, score in pretrained[name].items():
            figures[f"poolings/{name}/pretrained/{pooling}"] = score.accuracy
    return figures


def rows(figures: Mapping[str, Any]) -> list[Row]:
    """Returns both probes beside their baselines, and their accuracy with every pooling."""
    shown = []
    for probe, title in _TITLES.items():
        title = title.format(figures.get("knn/num_neighbors", NUM_NEIGHBORS))
        shown += probe_rows(figures, probe, title, _BASELINES, IMAGE_POOLINGS)
    return shown


def probe_rows(
    figures: Mapping[str, Any],
    probe: str,
    title: str,
    baselines: tuple[str, ...],
    poolings: Mapping[str, str],
) -> list[Row]:
    """Returns a probe's accuracy beside its baselines, and with every pooling.

    One row without values if it was left out, none if the run has no such probe.

    Args:
        figures: The figures of an evaluation.
        probe: Beginning of the keys.
        title: Title of the rows.
        baselines: Ends of the keys to compare with.
        poolings: Descriptions by name.
    """
    level = "headline" if probe.startswith("linear_probe") else "normal"
    row = functools.partial(Row, section="features", unit="accuracy")
    if f"left_out/{probe}" in figures:
        return [row(title=title, values={}, note=figures[f"left_out/{probe}"], level=level)]
    if f"{probe}/pretrained" not in figures:
        return []
    names = [name for name in ("pretrained", *baselines) if f"{probe}/{name}" in figures]
    chosen = figures[f"{probe}/pooling"]
    of_poolings = {
        description: figures[key]
        for pooling, description in sorted(poolings.items(), key=lambda item: item[0] != chosen)
        if (key := f"poolings/{probe}/pretrained/{pooling}") in figures
    }
    main = row(
        title=title,
        values={name.replace("_", " "): figures[f"{probe}/{name}"] for name in names},
        note=f"Features: {poolings.get(chosen, chosen)}.",
        level=level,
    )
    detail = row(
        title=f"{title}: every pooling",
        values=of_poolings,
        note="The first was chosen on training images. To pick another one by these figures would "
        "be to choose on test.",
        level="detail",
    )
    return [main, detail] if of_poolings else [main]
