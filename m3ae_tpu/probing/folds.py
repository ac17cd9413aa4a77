"""Folds of training examples, by which probes make their choices."""

import warnings
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int, Int32
from sklearn.model_selection import StratifiedGroupKFold

NUM_FOLDS = 5

type Fold = tuple[Int[np.ndarray, " _"], Int[np.ndarray, " _"]]


def make_folds(
    labels: Int32[np.ndarray, " examples"], groups: Int32[np.ndarray, " examples"]
) -> list[Fold]:
    """Splits training examples into folds with similar classes; a group lies in one fold.

    There are five, or as many as there are groups, or examples of the largest class. A fold is left
    out if nothing can be learned for it: the examples outside of it have one class, or none of its
    own. So small sets may have no fold; `explain_no_folds` says why.

    Returns:
        Indices of the examples outside and inside of each fold.
    """
    _, class_sizes = np.unique(labels, return_counts=True)
    num_folds = min(NUM_FOLDS, len(np.unique(groups)), int(class_sizes.max(initial=0)))
    if num_folds < 2:
        return []
    with warnings.catch_warnings():
        # Small classes are nothing to warn of: a fold without one is as it should be.
        warnings.filterwarnings("ignore", "The least populated class|The number of unique classes")
        folds = StratifiedGroupKFold(num_folds).split(np.zeros(len(labels)), labels, groups)
        return [fold for fold in folds if _teaches(labels, *fold)]


def _teaches(labels: np.ndarray, others: np.ndarray, held_out: np.ndarray) -> bool:
    classes = np.unique(labels[others])
    return len(classes) > 1 and bool(np.isin(labels[held_out], classes).any())


def explain_no_folds(
    labels: Int32[np.ndarray, " examples"],
    groups: Int32[np.ndarray, " examples"],
    label_names: Sequence[str],
    place: str,
) -> str:
    """Returns why training examples have no folds, and what to do.

    Args:
        labels: Their classes.
        groups: Their near-duplicate groups.
        label_names: Names of the classes.
        place: Where the examples come from: the sentence's beginning.
    """
    numbers = np.unique(labels)
    if len(numbers) == 1:
        return (
            f"{place} hold a single class, {label_names[numbers[0]]} (examples: "
            f"{len(labels)}), and a probe tells classes apart. Name shards of two or more classes."
        )
    return (
        f"{place} hold too little for cross-validation (examples: {len(labels)}, classes: "
        f"{len(numbers)}, near-duplicate groups: {len(np.unique(groups))}). "
        "Name shards with more examples of each class."
    )
