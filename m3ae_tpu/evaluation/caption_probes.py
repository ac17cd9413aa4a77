"""Probes of captions, with their images and alone, beside classifiers without an encoder."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from m3ae_tpu.data.labelled import LabelledExamples
from m3ae_tpu.evaluation.baselines import (
    Counts,
    Pair,
    count_pieces,
    known_pieces,
    random_projection,
)
from m3ae_tpu.evaluation.features import (
    PAIR_POOLINGS,
    ROWS_PER_DEVICE,
    TEXT_POOLINGS,
    Pooled,
    pool_pairs,
    pool_texts,
)
from m3ae_tpu.evaluation.probe_rows import probe_rows
from m3ae_tpu.evaluation.protocol import Figures, Row, Subject
from m3ae_tpu.model.m3ae import M3AE
from m3ae_tpu.parallel.row_map import RowMap
from m3ae_tpu.probing.folds import explain_no_folds
from m3ae_tpu.probing.linear import start_linear_probes
from m3ae_tpu.probing.scores import ProbeScore, Targets, choose
from m3ae_tpu.probing.words import bag_of_words_probe


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Kind:
    """A part of the examples with captions that is encoded: all of it, or the caption."""

    prefix: str
    """Beginning of the figures' keys."""
    noun: str
    poolings: Mapping[str, str]
    pool: Callable[..., Pooled]


_PAIRS = _Kind(
    prefix="linear_probe_image_and_text",
    noun="images with captions",
    poolings=PAIR_POOLINGS,
    pool=pool_pairs,
)
_TEXTS = _Kind(
    prefix="linear_probe_text", noun="captions alone", poolings=TEXT_POOLINGS, pool=pool_texts
)
_BASELINES = ("untrained", "random_projection", "bag_of_pieces", "bag_of_words")
_NOTE = (
    "Bag of pieces: how often a caption has each of the tokenizer's pieces, by the same probe. "
    "Random projection: the same counts, projected to as many numbers as the features have."
)
_NO_WORDS = " Bag of words: left out, as no word occurs in two training captions."


def start(subject: Subject) -> Callable[[], Figures]:
    """Measures accuracies on the examples that have captions; nothing for a run without texts.

    `linear_probe_image_and_text/...` is there for a run with pairs, of images and captions that are
    encoded together; `linear_probe_text/...` for any run with texts, of captions alone. Of each:

    - `.../pretrained`, `.../untrained`, `.../pooling`, `.../num_features`, as for images.
    - `.../random_projection`: of the counts of the tokenizer's pieces in a caption, to
      `num_features` numbers.
    - `.../bag_of_pieces`: by these counts themselves, through the same probe.
    - `.../bag_of_words`: by the words of the caption.
    - `cross_validation/...`, `balanced/...`, `poolings/...`: as for images.
    """
    task = subject.run.task
    kinds = [_PAIRS] * task.has_pairs + [_TEXTS] * task.has_texts
    if not kinds:
        return dict
    examples = subject.train.with_captions(), subject.test.with_captions()
    for each, shards in zip(examples, (subject.train_shards, subject.test_shards), strict=True):
        if len(each) == 0:
            reason = f"{shards.pattern} hold no caption. Name shards with captions."
            return _left_out(kinds, reason)
    train = examples[0]
    targets = Targets.of(train.labels, examples[1].labels, train.groups)
    if not targets.folds:
        place = f"Records with captions of {subject.train_shards.pattern}"
        reason = explain_no_folds(train.labels, train.groups, train.label_names, place)
        return _left_out(kinds, reason)
    vocab_size = subject.run.config.model.vocab_size
    counts = count_pieces(examples[0], vocab_size), count_pieces(examples[1], vocab_size)
    subject.report("probes of words")
    bags = _start_bags(subject, targets, examples, counts)
    started = [_start(kind, subject, targets, examples, counts, bags) for kind in kinds]

    def wait() -> Figures:
        figures: Figures = {}
        for each in started:
            figures |= each()
        return figures

    return wait


def _left_out(kinds: Sequence[_Kind], reason: str) -> Callable[[], Figures]:
    return lambda: {f"left_out/{kind.prefix}": reason for kind in kinds}


def _start_bags(
    subject: Subject,
    targets: Targets,
    examples: Pair[LabelledExamples],
    counts: Pair[Counts],
) -> Callable[[], dict[str, ProbeScore]]:
    """Starts scoring the captions' pieces and words, as far as there are any."""
    known = known_pieces(counts)
    features = {} if known is None else {"bag_of_pieces": known}
    pieces = start_linear_probes(subject.threads, targets, features)
    words = bag_of_words_probe(targets, *(each.captions for each in examples))
    return lambda: pieces() | ({} if words is None else {"bag_of_words": words})


def _start(
    kind: _Kind,
    subject: Subject,
    targets: Targets,
    examples: Pair[LabelledExamples],
    counts: Pair[Counts],
    bags: Callable[[], dict[str, ProbeScore]],
) -> Callable[[], Figures]:
    task = subject.run.task
    pooled = RowMap(
        functools.partial(kind.pool, normalizer=task.normalizer),
        subject.run.mesh,
        rows_per_device=ROWS_PER_DEVICE,
    )

    def pool(model: M3AE) -> dict[str, Pair[np.ndarray]]:
        train, test = (pooled(model, task.rows(each)) for each in examples)
        return {name: (train[name], test[name]) for name in train}

    subject.report(f"features of {kind.noun}, pretrained encoder")
    wait_for_pretrained = start_linear_probes(subject.threads, targets, pool(subject.run.model))
    subject.report(f"features of {kind.noun}, untrained encoder")
    untrained = pool(subject.untrained)

    def wait() -> Figures:
        pretrained = wait_for_pretrained()
        pooling = choose(pretrained)
        size = untrained[pooling][0].shape[1]
        of_size = {
            "untrained": untrained[pooling],
            "random_projection": random_projection(counts, size),
        }
        baselines = start_linear_probes(subject.threads, targets, of_size)
        scores = {"pretrained": pretrained[pooling], **baselines(), **bags()}
        figures: Figures = {f"{kind.prefix}/pooling": pooling, f"{kind.prefix}/num_features": size}
        for who, score in scores.items():
            figures[f"{kind.prefix}/{who}"] = score.accuracy
            figures[f"cross_validation/{kind.prefix}/{who}"] = score.validation_accuracy
            figures[f"balanced/{kind.prefix}/{who}"] = score.balanced_accuracy
        for name, score in pretrained.items():
            figures[f"poolings/{kind.prefix}/pretrained/{name}"] = score.accuracy
        return figures

    return wait


def rows(figures: Mapping[str, Any]) -> list[Row]:
    """Returns each probe beside its baselines, and its accuracy with every pooling."""
    count = figures.get("examples/test_with_captions")
    shown = []
    for kind in (_PAIRS, _TEXTS):
        title = f"Linear probe, {kind.noun}"
        has_no_words = f"{kind.prefix}/bag_of_words" not in figures
        note = _NOTE + _NO_WORDS * has_no_words
        shown += probe_rows(figures, kind.prefix, title, _BASELINES, kind.poolings, note=note)
    return [dataclasses.replace(row, num_examples=count) for row in shown]
