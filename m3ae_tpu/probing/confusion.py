"""Confusion of classes: which are taken for which, and by which test examples."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

NUM_PAIRS = 8
NUM_EXAMPLES = 6


class ConfusedPair(NamedTuple):
    """A class whose examples are taken for another one."""

    true: int
    predicted: int
    count: int
    """Test examples of the one that are taken for the other."""
    examples: list[int]
    """Indices of the first of them among the test examples."""


def confusion_matrix(
    labels: Int[np.ndarray, " examples"],
    predicted: Int[np.ndarray, " examples"],
    num_classes: int,
) -> Int[np.ndarray, "classes classes"]:
    """Returns how many examples of each class (row) are taken for each class (column)."""
    matrix = np.zeros((num_classes, num_classes), np.int64)
    np.add.at(matrix, (labels, predicted), 1)
    return matrix


def most_confused(
    labels: Int[np.ndarray, " examples"],
    predicted: Int[np.ndarray, " examples"],
    *,
    num_pairs: int = NUM_PAIRS,
    num_examples: int = NUM_EXAMPLES,
) -> list[ConfusedPair]:
    """Returns the pairs of classes with the most mistakes, the largest number first."""
    wrong = np.flatnonzero(labels != predicted)
    pairs, numbers, counts = np.unique(
        np.stack([labels[wrong], predicted[wrong]], axis=1),
        axis=0,
        return_inverse=True,
        return_counts=True,
    )
    found = []
    for pair in np.argsort(-counts, kind="stable")[:num_pairs]:
        examples = wrong[numbers == pair][:num_examples]
        true, taken_for = pairs[pair].tolist()
        found.append(ConfusedPair(true, taken_for, int(counts[pair]), examples.tolist()))
    return found


def describe_confusion(
    labels: Int[np.ndarray, " examples"],
    predicted: Int[np.ndarray, " examples"],
    label_names: Sequence[str],
) -> dict[str, object]:
    """Returns `labels`, `matrix` and the most confused `pairs`, ready for a JSON file."""
    return {
        "labels": list(label_names),
        "matrix": confusion_matrix(labels, predicted, len(label_names)).tolist(),
        "pairs": [
            {
                "true": label_names[pair.true],
                "predicted": label_names[pair.predicted],
                "count": pair.count,
                "examples": pair.examples,
            }
            for pair in most_confused(labels, predicted)
        ],
    }
