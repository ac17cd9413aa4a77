"""Probes of images with captions, encoded together, beside a classifier of the captions' words."""

import functools
from collections.abc import Mapping
from typing import Any

from m3ae_tpu.evaluation.features import PAIR_POOLINGS, pool_pairs
from m3ae_tpu.evaluation.image_probes import probe_rows
from m3ae_tpu.evaluation.probes import bag_of_words_probe, choose, linear_probe
from m3ae_tpu.evaluation.protocol import Figures, Row, Subject
from m3ae_tpu.evaluation.row_map import RowMap

_PREFIX = "linear_probe_image_and_text"


def run(subject: Subject) -> Figures:
    """Measures accuracies; nothing for a run without pairs, or examples without captions.

    - `linear_probe_image_and_text/pretrained`, `.../untrained`, and `.../pooling`, as for images.
    - `linear_probe_image_and_text/bag_of_words`: by the words of the caption, without an encoder.
    - `balanced/...`, `poolings/...`: as for images.
    """
    if not subject.run.task.has_pairs or not any(subject.train.captions):
        return {}
    normalizer = subject.run.task.normalizer
    pool = RowMap(functools.partial(pool_pairs, normalizer=normalizer), subject.run.mesh)
    examples = subject.train, subject.test

    subject.report("features of images with captions, pretrained encoder")
    train, test = (pool(subject.run.model, subject.run.task.rows(each)) for each in examples)
    subject.report("probes of images with captions, pretrained encoder")
    pretrained = {name: linear_probe(subject.targets, train[name], test[name]) for name in train}
    pooling = choose(pretrained)
    subject.report("features of images with captions, untrained encoder")
    train, test = (pool(subject.untrained, subject.run.task.rows(each)) for each in examples)
    subject.report("probes of images with captions, untrained encoder, and of words")
    words = bag_of_words_probe(subject.targets, *(each.captions for each in examples))
    scores = {
        "pretrained": pretrained[pooling],
        "untrained": linear_probe(subject.targets, train[pooling], test[pooling]),
        "bag_of_words": words,
    }
    figures: Figures = {f"{_PREFIX}/pooling": pooling}
    for who, score in scores.items():
        figures[f"{_PREFIX}/{who}"] = score.accuracy
        figures[f"balanced/{_PREFIX}/{who}"] = score.balanced_accuracy
    for name, score in pretrained.items():
        figures[f"poolings/{_PREFIX}/pretrained/{name}"] = score.accuracy
    return figures


def rows(figures: Mapping[str, Any]) -> list[Row]:
    """Returns the probe beside its baselines, and its accuracy with every pooling."""
    if f"{_PREFIX}/pretrained" not in figures:
        return []
    baselines = ("untrained", "bag_of_words")
    title = "Linear probe, images with captions"
    return probe_rows(figures, _PREFIX, title, baselines, PAIR_POOLINGS)
