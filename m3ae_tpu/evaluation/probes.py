"""Probes of frozen features: k nearest neighbours and a linear classifier. NumPy and SciPy only.

The linear probe standardises features, keeps their 256 largest principal components and fits a
multinomial logistic regression. How strongly it is regularised is chosen by cross-validation on the
training examples, whole near-duplicate groups at a time; so is the pooling. The test examples
decide nothing.
"""

import dataclasses
import hashlib
import re
from collections.abc import Sequence

import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.sparse
from jaxtyping import Float, Int32

NUM_COMPONENTS = 256
STRENGTHS = (0.003, 0.01, 0.03, 0.1)
"""Weights of the loss against the penalty, `C` in scikit-learn; small ones regularise strongly."""
NUM_FOLDS = 5
NUM_NEIGHBORS = 10
TEMPERATURE = 0.07
"""A neighbour votes with exp(cosine / temperature) (Wu et al. 2018, §3.4)."""

type Features = Float[np.ndarray, "examples features"]
type Labels = Int32[np.ndarray, " examples"]
type TestFeatures = Float[np.ndarray, "test_examples features"]
type TestLabels = Int32[np.ndarray, " test_examples"]
type Folds = Int32[np.ndarray, " examples"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeScore:
    """What a probe reached, as shares of 1."""

    accuracy: float
    """Test examples that were classified right."""
    balanced_accuracy: float
    """Mean over classes of the share that was classified right."""
    validation_accuracy: float
    """Training examples that were classified right by a fit on the other folds: what choices are
    made by.
    """
    strength: float
    """The chosen one of `STRENGTHS`."""


def assign_folds(groups: Sequence[str]) -> Folds:
    """Returns each example's fold, 0 to 4, for cross-validation: a near-duplicate group lies in one
    fold.

    Of a group that ends in six hexadecimal digits their value modulo 5 decides, of any other name a
    hash.
    """
    return np.array([_group_number(group) % NUM_FOLDS for group in groups], np.int32)


def _group_number(group: str) -> int:
    digits = re.search(r"[0-9a-f]{6}$", group)
    return int(digits[0] if digits else hashlib.sha256(group.encode()).hexdigest()[-6:], 16)


def standard_error(accuracy: float, num_examples: int) -> float:
    """Returns the standard error of an accuracy on independent examples: sqrt(p (1 - p) / n)."""
    return float(np.sqrt(accuracy * (1 - accuracy) / num_examples))


def balanced_accuracy(predicted: Labels, labels: Labels) -> float:
    """Returns the mean over the classes in `labels` of the share that was predicted right."""
    return float(
        np.mean([np.mean(predicted[labels == label] == label) for label in np.unique(labels)])
    )


def linear_probe(
    train: Features,
    train_labels: Labels,
    test: TestFeatures,
    test_labels: TestLabels,
    folds: Folds,
) -> ProbeScore:
    """Fits and scores a linear classifier of frozen features.

    Standardisation and principal components see no label and are computed once, on all of train.

    Args:
        train: float32 or float64.
        train_labels: Classes from 0 on.
        test: Like `train`.
        test_labels: Like `train_labels`.
        folds: Of the training examples, see `assign_folds`; the strength is chosen by them.
    """
    train, test = principal_components(train, test)
    return _choose_and_fit(train, train_labels, test, test_labels, folds, STRENGTHS)


def bag_of_words_probe(
    train: Sequence[str],
    train_labels: Labels,
    test: Sequence[str],
    test_labels: TestLabels,
    folds: Folds,
) -> ProbeScore:
    """Scores a linear classifier of which words a caption has: what the text gives away without any
    encoder.

    Counts the words of at least two training captions, in lower case; no principal components, so
    weaker regularisation is tried.
    """
    words = [set(re.findall(r"\w+", caption.lower())) for caption in [*train, *test]]
    seen: dict[str, int] = {}
    for caption_words in words[: len(train)]:
        for word in caption_words:
            seen[word] = seen.get(word, 0) + 1
    columns = {
        word: column
        for column, word in enumerate(sorted(word for word, n in seen.items() if n > 1))
    }
    entries = [
        (row, columns[word])
        for row, ws in enumerate(words)
        for word in sorted(ws)
        if word in columns
    ]
    rows, cols = np.array(entries, np.int64).reshape(-1, 2).T
    matrix = scipy.sparse.csr_array(
        (np.ones(len(rows)), (rows, cols)), shape=(len(words), len(columns))
    )
    strengths = (1.0, 10.0)
    return _choose_and_fit(
        matrix[: len(train)], train_labels, matrix[len(train) :], test_labels, folds, strengths
    )


def _choose_and_fit(
    train,
    train_labels: Labels,
    test,
    test_labels: TestLabels,
    folds: Folds,
    strengths: Sequence[float],
) -> ProbeScore:
    num_classes = int(max(train_labels.max(), test_labels.max())) + 1
    guessed = np.empty((len(strengths), len(train_labels)), np.int32)
    for fold in np.unique(folds):
        is_out, fitted = folds == fold, None
        for row, strength in enumerate(strengths):
            fitted = fit_logistic(
                train[~is_out], train_labels[~is_out], num_classes, strength, start=fitted
            )
            guessed[row, is_out] = fitted.predict(train[is_out])
    scores = np.mean(guessed == train_labels, axis=1)
    best = int(np.argmax(scores))
    predicted = fit_logistic(train, train_labels, num_classes, strengths[best]).predict(test)
    return ProbeScore(
        accuracy=float(np.mean(predicted == test_labels)),
        balanced_accuracy=balanced_accuracy(predicted, test_labels),
        validation_accuracy=float(scores[best]),
        strength=strengths[best],
    )


def standardize(train: Features, test: TestFeatures) -> tuple[Features, TestFeatures]:
    """Gives every feature mean 0 and variance 1 over train; a constant feature becomes 0."""
    mean = train.mean(axis=0, dtype=np.float64)
    std = train.std(axis=0, dtype=np.float64)
    scale = np.where(std > 1e-6 * np.abs(mean) + 1e-12, 1 / np.maximum(std, 1e-12), 0.0)
    return ((train - mean) * scale).astype(np.float32), ((test - mean) * scale).astype(np.float32)


def principal_components(
    train: Features, test: TestFeatures, num_components: int = NUM_COMPONENTS
) -> tuple[Float[np.ndarray, "examples components"], Float[np.ndarray, "test_examples components"]]:
    """Standardises and projects on the largest principal components of train; exact, nothing
    random.
    """
    train, test = standardize(train, test)
    # Of fewer examples than features the examples' products give the same directions for less work.
    has_few_examples = train.shape[0] < train.shape[1]
    products = train @ train.T if has_few_examples else train.T @ train
    size = len(products)
    variances, directions = scipy.linalg.eigh(
        products, subset_by_index=(max(0, size - num_components), size - 1)
    )
    if has_few_examples:
        # Standardised columns sum to 0, so at least one direction is empty.
        is_real = variances > 1e-5 * variances[-1]
        directions = train.T @ (directions[:, is_real] / np.sqrt(variances[is_real]))
    directions = directions[:, ::-1]
    return train @ directions, test @ directions


@dataclasses.dataclass(frozen=True)
class LinearClassifier:
    """scores = features @ weights + bias."""

    weights: Float[np.ndarray, "features classes"]
    bias: Float[np.ndarray, " classes"]

    def predict(self, features) -> Labels:
        """Returns the class of the largest score, of equal ones the first."""
        return np.argmax(features @ self.weights + self.bias[None, :], axis=1).astype(np.int32)


def fit_logistic(
    features,
    labels: Labels,
    num_classes: int,
    strength: float,
    *,
    start: LinearClassifier | None = None,
) -> LinearClassifier:
    """Minimises strength * (sum of cross-entropies) + |weights|² / 2 by L-BFGS.

    The bias is not penalised. Weights and sums are float64, products are taken in the features'
    dtype.

    Args:
        features: Array or sparse array [examples, features]. Nearly uncorrelated ones converge
            fastest.
        labels: Classes from 0 on.
        num_classes: More than any label.
        strength: `C` in scikit-learn.
        start: Where to begin, for speed: a fit of a strength nearby. None: zero.
    """
    num_features = features.shape[1]
    # Classes come first: sums over the long axis of few rows are several times as fast.
    one_hot = np.eye(num_classes, dtype=features.dtype)[:, labels]
    columns = np.arange(len(labels))
    # Variables are scaled by the root of their curvature: 30 iterations do where 1,000 would not.
    square_sums = np.asarray((features**2).sum(axis=0)).ravel()
    scale = 1 / np.sqrt(1 + strength * np.append(square_sums, len(labels)) * 0.1)[None, :]

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        parameters = flat.reshape(num_classes, num_features + 1) * scale
        weights = parameters[:, :-1]
        scores = (weights.astype(features.dtype) @ features.T) + parameters[:, -1:].astype(
            features.dtype
        )
        scores -= scores.max(axis=0)
        exponentials = np.exp(scores)
        sums = exponentials.sum(axis=0)
        loss = np.log(sums).sum(dtype=np.float64) - scores[labels, columns].sum(dtype=np.float64)
        residual = exponentials / sums - one_hot
        gradient = np.empty_like(parameters)
        gradient[:, :-1] = strength * (residual @ features) + weights
        gradient[:, -1] = strength * residual.sum(axis=1)
        return float(strength * loss + 0.5 * np.vdot(weights, weights)), (gradient * scale).ravel()

    first = np.zeros((num_classes, num_features + 1))
    if start is not None:
        first = np.column_stack([start.weights.T, start.bias]) / scale
    options = {"maxiter": 500, "gtol": 1e-3 * np.sqrt(strength), "ftol": 1e-7}
    found = scipy.optimize.minimize(
        objective, first.ravel(), jac=True, method="L-BFGS-B", options=options
    )
    parameters = found.x.reshape(num_classes, num_features + 1) * scale
    return LinearClassifier(parameters[:, :-1].T, parameters[:, -1])


def choose_pooling(scores: dict[str, ProbeScore]) -> str:
    """Returns the pooling with the best accuracy in cross-validation on train, of equal ones the
    first.
    """
    return max(scores, key=lambda name: scores[name].validation_accuracy)


def predict_neighbors(
    train: Features, train_labels: Labels, test: TestFeatures, *, num_neighbors: int = NUM_NEIGHBORS
) -> TestLabels:
    """Classifies by the weighted vote of the nearest training examples, by cosine of standardised
    features.

    Holds the similarities of 512 test examples at a time.
    """
    train, test = standardize(train, test)
    train, test = _unit(train), _unit(test)
    num_neighbors = min(num_neighbors, len(train))
    one_hot = np.eye(int(train_labels.max()) + 1, dtype=np.float32)[train_labels]
    predicted = []
    for start in range(0, len(test), 512):
        cosine = test[start : start + 512] @ train.T
        nearest = np.argpartition(-cosine, num_neighbors - 1, axis=1)[:, :num_neighbors]
        vote = np.exp(np.take_along_axis(cosine, nearest, axis=1) / TEMPERATURE)
        predicted.append(np.argmax(np.einsum("tn,tnc->tc", vote, one_hot[nearest]), axis=1))
    return np.concatenate(predicted).astype(np.int32)


def cross_validate_neighbors(train: Features, train_labels: Labels, folds: Folds) -> float:
    """Returns the share of training examples that their neighbours in the other folds classify
    right.
    """
    guessed = np.empty_like(train_labels)
    for fold in np.unique(folds):
        is_out = folds == fold
        guessed[is_out] = predict_neighbors(train[~is_out], train_labels[~is_out], train[is_out])
    return float(np.mean(guessed == train_labels))


def _unit(features: Features) -> Features:
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
