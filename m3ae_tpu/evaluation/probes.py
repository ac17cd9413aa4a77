"""Probes of frozen features with scikit-learn: linear classifiers and nearest neighbours.

Every choice (regularisation, pooling) is made by cross-validation on the training examples, whole
near-duplicate groups at a time. The test examples decide nothing.
"""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import sklearn.linear_model
from jaxtyping import Float, Int, Int32
from sklearn.base import ClassifierMixin
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from m3ae_tpu.data.labelled import LabelledExamples
from m3ae_tpu.evaluation.folds import Fold, make_folds
from m3ae_tpu.evaluation.logistic_regression import LogisticRegression

NUM_COMPONENTS = 256
STRENGTHS = (0.003, 0.01, 0.03, 0.1)
"""Weights of the loss against the penalty, `C` in scikit-learn: small ones regularise strongly."""
WORD_STRENGTHS = (1.0, 10.0)
"""The same for counts of words, which need weaker regularisation."""
NUM_NEIGHBORS = 10
TEMPERATURE = 0.07
"""A neighbour votes with exp(cosine / temperature) (Wu et al. 2018, §3.4)."""

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
    def of_examples(cls, train: LabelledExamples, test: LabelledExamples) -> "Targets":
        """Returns the targets of training and test examples."""
        return cls(train.labels, test.labels, make_folds(train.labels, train.groups))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeScore:
    """The accuracy of a probe, as shares of 1."""

    accuracy: float
    """Share of the test examples that are classified right."""
    balanced_accuracy: float
    """Mean of that share over the classes."""
    validation_accuracy: float
    """Mean accuracy on each fold of the training examples after a fit on the others."""


def linear_probe(targets: Targets, train: TrainFeatures, test: TestFeatures) -> ProbeScore:
    """Scores a linear classifier of the features' largest principal components.

    Standardisation and components see no label and are computed once, on all training examples.
    """
    num_components = min(NUM_COMPONENTS, *train.shape)
    # The exact solvers: one for many examples, one for few.
    solver = "covariance_eigh" if train.shape[0] > train.shape[1] else "full"
    reduce = make_pipeline(StandardScaler(), PCA(num_components, svd_solver=solver))
    with np.errstate(invalid="ignore"):  # Examples that are all alike: 0 / 0 of the variance.
        train, test = reduce.fit_transform(train), reduce.transform(test)
    return _search(LogisticRegression(), {"C": STRENGTHS}, targets, train, test)


def bag_of_words_probe(
    targets: Targets, train: Sequence[str], test: Sequence[str]
) -> ProbeScore | None:
    """Scores a linear classifier of the words in a caption, without any encoder.

    Takes the words of at least two training captions, in lower case; None if there are none.
    """
    words = CountVectorizer(binary=True, min_df=2, token_pattern=r"\w+")
    try:
        counts = words.fit_transform(train)
    except ValueError:  # scikit-learn's way to say that no word is left.
        return None
    classifier = sklearn.linear_model.LogisticRegression(tol=1e-3, max_iter=2_000)
    return _search(classifier, {"C": WORD_STRENGTHS}, targets, counts, words.transform(test))


def neighbors_probe(targets: Targets, train: TrainFeatures, test: TestFeatures) -> ProbeScore:
    """Scores the vote of the nearest training examples; see `neighbors_classifier`."""
    return _search(neighbors_classifier(num_neighbors(targets)), {}, targets, train, test)


def num_neighbors(targets: Targets) -> int:
    """Returns how many neighbours vote: ten, or as many examples as the smallest fold leaves."""
    return min(NUM_NEIGHBORS, *(len(others) for others, _ in targets.folds))


def neighbors_classifier(count: int) -> Pipeline:
    """Returns a classifier by nearest neighbours, by the cosine of standardised features.

    Args:
        count: Neighbours that vote.
    """
    return make_pipeline(
        StandardScaler(),
        KNeighborsClassifier(
            count,
            metric="cosine",
            weights=_votes,  # pyright: ignore[reportArgumentType]  # A function is allowed too.
        ),
    )


def _votes(distances: Float[np.ndarray, "examples neighbors"]):
    return np.exp((1 - distances) / TEMPERATURE)


def choose(scores: dict[str, ProbeScore]) -> str:
    """Returns the name with the best accuracy in cross-validation, of equal ones the first."""
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


def _search(
    classifier: ClassifierMixin | Pipeline,
    grid: dict[str, Sequence[Any]],
    targets: Targets,
    train: Any,
    test: Any,
) -> ProbeScore:
    """Chooses parameters by cross-validation, fits all training examples, scores the test ones."""
    search = GridSearchCV(
        classifier,
        grid,
        cv=targets.folds,
        error_score="raise",  # pyright: ignore[reportArgumentType]  # Allowed beside numbers.
    )
    with warnings.catch_warnings():
        # Classes of few examples are still classes.
        warnings.filterwarnings("ignore", "The number of unique classes")
        predicted = search.fit(train, targets.train).predict(test)
    return ProbeScore(
        accuracy=float(np.mean(predicted == targets.test)),
        balanced_accuracy=balanced_accuracy(targets.test, predicted),
        validation_accuracy=float(search.best_score_),
    )
