"""Probes of images with captions, encoded together, beside a classifier of the captions' words."""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from m3ae_tpu.evaluation.features import PAIR_POOLINGS, pool_pairs
from m3ae_tpu.evaluation.image_probes import probe_rows
from m3ae_tpu.evaluation.protocol import Figures, Row, Subject
from m3ae_tpu.parallel.row_map import RowMap
from m3ae_tpu.probing.folds import explain_no_folds
from m3ae_tpu.probing.linear import linear_probe
from m3ae_tpu.probing.scores import Targets, choose
from m3ae_tpu.probing.words import bag_of_words_probe

_PREFIX = "linear_probe_image_and_text"
_NO_WORDS = " Bag of words: left out, as no word occurs in two training captions."


def run(subject: Subject) -> Figures:
    """Measures accuracies on the examples that have captions; nothing for a run without pairs.

    - `linear_probe_image_and_text/pretrained`, `.../untrained`, and `.../pooling`, as for images.
    - `linear_probe_image_and_text/bag_of_words`: by the words of the caption, without an encoder.
    - `balanced/...`, `poolings/...`: as for images.
    """
    if not subject.run.task.has_pairs:
        return {}
    examples = [each.with_captions() for each in (subject.train, subject.test)]
    for each, shards in zip(examples, (subject.train_shards, subject.test_shards), strict=True):
        if len(each) == 0:
            reason = f"{shards.pattern} hold no caption. Name shards with captions."
            return {f"left_out/{_PREFIX}": reason}
    targets = Targets.of(examples[0].labels, examples[1].labels, examples[0].groups)
    if not targets.folds:
        place = f"Records with captions of {subject.train_shards.pattern}"
        train = examples[0]
        reason = explain_no_folds(train.labels, train.groups, train.label_names, place)
        return {f"left_out/{_PREFIX}": reason}
    normalizer = subject.run.task.normalizer
    pool = RowMap(functools.partial(pool_pairs, normalizer=normalizer), subject.run.mesh)

    subject.report("features of images with captions, pretrained encoder")
    train, test = (pool(subject.run.model, subject.run.task.rows(each)) for each in examples)
    subject.report("probes of images with captions, pretrained encoder")
    pretrained = {name: linear_probe(targets, train[name], test[name]) for name in train}
    pooling = choose(pretrained)
    subject.report("features of images with captions, untrained encoder")
    train, test = (pool(subject.untrained, subject.run.task.rows(each)) for each in examples)
    subject.report("probes of images with captions, untrained encoder, and of words")
    words = bag_of_words_probe(targets, *(each.captions for each in examples))
    scores = {
        "pretrained": pretrained[pooling],
        "untrained": linear_probe(targets, train[pooling], test[pooling]),
    }
    if words is not None:
        scores["bag_of_words"] = words
    figures: Figures = {f"{_PREFIX}/pooling": pooling}
    for who, score in scores.items():
        figures[f"{_PREFIX}/{who}"] = score.accuracy
        figures[f"balanced/{_PREFIX}/{who}"] = score.balanced_accuracy
    for name, score in pretrained.items():
        figures[f"poolings/{_PREFIX}/pretrained/{name}"] = score.accuracy
    return figures


def rows(figures: Mapping[str, Any]) -> list[Row]:
    """Returns the probe beside its baselines, and its accuracy with every pooling."""
    title, baselines = "Linear probe, images with captions", ("untrained", "bag_of_words")
    shown = probe_rows(figures, _PREFIX, title, baselines, PAIR_POOLINGS)
    has_no_words = f"{_PREFIX}/pretrained" in figures and f"{_PREFIX}/bag_of_words" not in figures
    note = _NO_WORDS if has_no_words else ""
    count = figures.get("examples/test_with_captions")
    return [dataclasses.replace(row, note=f"{row.note}{note}", num_examples=count) for row in shown]
