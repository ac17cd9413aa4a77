"""Scores of probes: accuracies on test examples, and what was predicted."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Int32

from m3ae_tpu.probing.folds import Fold, make_folds

type TrainFeatures = Float[np.ndarray, "train_examples features"]
type TestFeatures = Float[np.ndarray, "test_examples features"]


@dataclasses.dataclass(frozen=True)
class Targets:
    """The classes that probes predict, and the folds by which they make their choices."""

    train: Int32[np.ndarray, " train_examples"]
    test: Int32[np.ndarray, " test_examples"]
    folds: Sequence[Fold]
    """Indices of the training examples outside and inside of each fold; see `make_folds`.
    Without any no probe can be made.
    """

    @classmethod
    def of(
        cls,
        train: Int32[np.ndarray, " train_examples"],
        test: Int32[np.ndarray, " test_examples"],
        groups: Int32[np.ndarray, " train_examples"],
    ) -> "Targets":
        """Returns the targets of labels; training examples of one group lie in one fold."""
        return cls(train, test, make_folds(train, groups))

    @property
    def num_classes(self) -> int:
        """Classes of the training examples: labels are 0 to this number."""
        return int(self.train.max()) + 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeScore:
    """The accuracy of a probe, as shares of 1."""

    accuracy: float
    """Share of the test examples that are classified right."""
    balanced_accuracy: float
    """Mean of that share over the classes."""
    validation_accuracy: float
    """Mean accuracy on held-out training examples after a fit on the others: to choose by."""
    predicted: Int[np.ndarray, " test_examples"]
    """Class of each test example."""
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Choices that were made, by name, as numbers and texts."""

    @classmethod
    def of(
        cls,
        targets: Targets,
        predicted: Int[np.ndarray, " test_examples"],
        validation_accuracy: float,
        **settings: Any,
    ) -> "ProbeScore":
        """Returns the score of predictions for the test examples."""
        return cls(
            accuracy=float(np.mean(predicted == targets.test)),
            balanced_accuracy=balanced_accuracy(targets.test, predicted),
            validation_accuracy=validation_accuracy,
            predicted=predicted,
            settings=settings,
        )


def choose(scores: Mapping[str, ProbeScore]) -> str:
    """Returns the name with the best validation accuracy, of equal ones the first."""
    return max(scores, key=lambda name: scores[name].validation_accuracy)


def standard_error(accuracy: float, num_examples: int) -> float:
    """Returns the standard error of an accuracy on independent examples: sqrt(p (1 - p) / n)."""
    return float(np.sqrt(accuracy * (1 - accuracy) / num_examples))


def balanced_accuracy(
    labels: Int[np.ndarray, " examples"], predicted: Int[np.ndarray, " examples"]
) -> float:
    """Returns the mean over the classes in `labels` of the share that was predicted right."""
    is_right = predicted == labels
    return float(np.mean([is_right[labels == label].mean() for label in np.unique(labels)]))
