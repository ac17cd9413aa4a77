"""Probes of frozen features with scikit-learn: linear classifiers and nearest neighbours.

Every choice (regularisation, pooling) is made by cross-validation on the training examples, whole
near-duplicate groups at a time. The test examples decide nothing.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import sklearn.linear_model
from jaxtyping import Float, Int, Int32
from sklearn.base import ClassifierMixin
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.metrics import recall_score
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from m3ae_tpu.errors import UserError, require
from m3ae_tpu.evaluation.logistic_regression import LogisticRegression

NUM_COMPONENTS = 256
STRENGTHS = (0.003, 0.01, 0.03, 0.1)
"""Weights of the loss against the penalty, `C` in scikit-learn: small ones regularise strongly."""
WORD_STRENGTHS = (1.0, 10.0)
"""The same for counts of words, which need weaker regularisation."""
NUM_FOLDS = 5
NUM_NEIGHBORS = 10
TEMPERATURE = 0.07
"""A neighbour votes with exp(cosine / temperature) (Wu et al. 2018, §3.4)."""

type TrainFeatures = Float[np.ndarray, "train_examples features"]
type TestFeatures = Float[np.ndarray, "test_examples features"]
type Fold = tuple[Int[np.ndarray, " _"], Int[np.ndarray, " _"]]


@dataclasses.dataclass(frozen=True)
class Targets:
    """The classes that probes predict, and the folds by which they make their choices."""

    train: Int32[np.ndarray, " train_examples"]
    test: Int32[np.ndarray, " test_examples"]
    folds: Sequence[Fold]
    """Indices of the training examples outside and inside of each fold; see `make_folds`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeScore:
    """The accuracy of a probe, as shares of 1."""

    accuracy: float
    """Share of the test examples that are classified right."""
    balanced_accuracy: float
    """Mean of that share over the classes."""
    validation_accuracy: float
    """Mean accuracy on each fold of the training examples after a fit on the others."""


def make_folds(labels: Int32[np.ndarray, " examples"], groups: Sequence[str]) -> list[Fold]:
    """Splits training examples into folds with similar classes; a group lies in one fold.

    Raises:
        UserError: there are too few groups, or fewer than five examples of every class.
    """
    num_groups, largest_class = len(set(groups)), int(np.bincount(labels).max())
    require(
        min(num_groups, largest_class) >= NUM_FOLDS,
        f"{len(labels)} labelled training examples in {num_groups} near-duplicate groups are too "
        f"few for cross-validation in {NUM_FOLDS} folds. Name training shards with more.",
    )
    return list(StratifiedGroupKFold(NUM_FOLDS).split(np.zeros(len(labels)), labels, groups))


def linear_probe(targets: Targets, train: TrainFeatures, test: TestFeatures) -> ProbeScore:
    """Scores a linear classifier of the features' largest principal components.

    Standardisation and components see no label and are computed once, on all training examples.
    """
    num_components = min(NUM_COMPONENTS, *train.shape)
    # The exact solvers: one for many examples, one for few.
    solver = "covariance_eigh" if train.shape[0] > train.shape[1] else "full"
    reduce = make_pipeline(StandardScaler(), PCA(num_components, svd_solver=solver))
    train, test = reduce.fit_transform(train), reduce.transform(test)
    return _search(LogisticRegression(), {"C": STRENGTHS}, targets, train, test)


def bag_of_words_probe(targets: Targets, train: Sequence[str], test: Sequence[str]) -> ProbeScore:
    """Scores a linear classifier of the words in a caption, without any encoder.

    Takes the words of at least two training captions, in lower case.

    Raises:
        UserError: there is no such word.
    """
    words = CountVectorizer(binary=True, min_df=2, token_pattern=r"\w+")
    try:
        counts = words.fit_transform(train)
    except ValueError:
        raise UserError(
            f"No word occurs in two of the {len(train)} training captions. "
            "Name training shards with more captions."
        ) from None
    classifier = sklearn.linear_model.LogisticRegression(tol=1e-3, max_iter=2_000)
    return _search(classifier, {"C": WORD_STRENGTHS}, targets, counts, words.transform(test))


def neighbors_probe(targets: Targets, train: TrainFeatures, test: TestFeatures) -> ProbeScore:
    """Scores the vote of the nearest training examples; see `neighbors_classifier`."""
    num_train = min(len(others) for others, _ in targets.folds)
    return _search(neighbors_classifier(num_train), {}, targets, train, test)


def neighbors_classifier(num_train: int) -> Pipeline:
    """Returns a classifier by ten nearest neighbours, by the cosine of standardised features.

    Args:
        num_train: Training examples that it will have, at least.
    """
    return make_pipeline(
        StandardScaler(),
        KNeighborsClassifier(
            min(NUM_NEIGHBORS, num_train),
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
    return float(recall_score(labels, predicted, labels=np.unique(labels), average="macro"))


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
    predicted = search.fit(train, targets.train).predict(test)
    return ProbeScore(
        accuracy=float(np.mean(predicted == targets.test)),
        balanced_accuracy=balanced_accuracy(targets.test, predicted),
        validation_accuracy=float(search.best_score_),
    )
