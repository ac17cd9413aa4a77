"""The examples of an evaluation: which they are, and what a reader of its figures must know."""

import hashlib
from collections.abc import Mapping
from typing import Any

from m3ae_tpu.data.labelled import LabelledExamples
from m3ae_tpu.evaluation.protocol import Figures, Subject


def describe_examples(subject: Subject) -> Figures:
    """Returns numbers of the training and test examples, as `examples/...`.

    - `examples/train_shards`, `.../test_shards`: names of their shards; `.../train_digest`,
      `.../test_digest`: digests of their content.
    - `examples/train`, `.../test`: numbers of examples.
    - `examples/train_with_captions`, `.../test_with_captions`: those that have a caption.
    - `examples/folds`: folds by which probes made their choices.
    - `examples/test_seen_in_train`: test images that are training images too, pixel by pixel.
    """
    return {
        "examples/train_shards": subject.train_shards.pattern,
        "examples/test_shards": subject.test_shards.pattern,
        "examples/train_digest": subject.train_shards.digest,
        "examples/test_digest": subject.test_shards.digest,
        "examples/train": len(subject.train),
        "examples/test": len(subject.test),
        "examples/train_with_captions": int(subject.train.has_caption.sum()),
        "examples/test_with_captions": int(subject.test.has_caption.sum()),
        "examples/folds": len(subject.targets.folds),
        "examples/test_seen_in_train": _count_shared(subject.train, subject.test),
    }


def example_remarks(figures: Mapping[str, Any]) -> list[str]:
    """Returns sentences on the examples that qualify the figures of an `evaluation.json`."""
    remarks = []
    totals = figures["examples/train"], figures["examples/test"]
    counts = [
        figures.get(f"examples/{side}_with_captions", total)
        for side, total in zip(("train", "test"), totals, strict=True)
    ]
    if any(counts) and tuple(counts) != totals:
        remarks.append(
            f"{counts[0]:,} of {totals[0]:,} training and {counts[1]:,} of {totals[1]:,} test "
            "examples have captions; figures of captions and words are those of these examples."
        )
    shared = figures.get("examples/test_seen_in_train", 0)
    if shared:
        remarks.append(
            f"{shared:,} of {figures['examples/test']:,} test images are training images too: for "
            "them accuracies measure memory."
        )
    return remarks


def _count_shared(train: LabelledExamples, test: LabelledExamples) -> int:
    known = {hashlib.sha256(image).digest() for image in train.images}
    return sum(hashlib.sha256(image).digest() in known for image in test.images)
