"""Linear probe: logistic regression of the features' principal components.

Every choice is made by cross-validation on the training examples, whole near-duplicate groups at a
time. The test examples decide nothing.
"""

import concurrent.futures
from collections.abc import Callable, Mapping

import numpy as np
import scipy.linalg
from jaxtyping import Float
from sklearn.preprocessing import StandardScaler

from m3ae_tpu.probing.logistic_regression import LogisticRegression, fit_subsets
from m3ae_tpu.probing.scores import ProbeScore, Targets, TestFeatures, TrainFeatures

NUM_COMPONENTS = 256
EXAMPLES_PER_COMPONENT = 16
"""Sets of more examples than this for each of the 256 keep more components."""
STRENGTHS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Weights of the loss against the penalty, `C` in scikit-learn: small ones regularise strongly."""
MAX_NUM_WORSE = 2
"""The search stops after as many strengths in a row that are worse than the best one."""
RIDGE = 1e-3
"""Added to variances before whitening, as a share of the mean one: keeps down those near 0."""


def linear_probe(targets: Targets, train: TrainFeatures, test: TestFeatures) -> ProbeScore:
    """Scores a linear classifier of the features' largest principal components.

    Standardisation and components see no label and are computed once, on all training examples.
    Cross-validation chooses the penalty, and whether components are whitened: scaled to variance 1.
    """
    components, test_components, variances = principal_components(train, test)
    found = []
    for is_whitened in (False, True):
        scale = np.ones_like(variances)
        if is_whitened:
            scale = 1 / np.sqrt(variances + RIDGE * variances.mean() + np.finfo(np.float32).tiny)
        scaled = components * scale
        accuracy, strength = _search(targets, scaled)
        found.append((accuracy, strength, is_whitened, scaled, scale))
    accuracy, strength, is_whitened, scaled, scale = max(found, key=lambda each: each[0])
    classifier = LogisticRegression(strength).fit(scaled, targets.train)
    return ProbeScore.of(
        targets,
        classifier.predict(test_components * scale),
        accuracy,
        C=strength,
        whitened="yes" if is_whitened else "no",
        components=components.shape[1],
    )


def start_linear_probes(
    threads: concurrent.futures.Executor,
    targets: Targets,
    features: Mapping[str, tuple[TrainFeatures, TestFeatures]],
) -> Callable[[], dict[str, ProbeScore]]:
    """Starts scoring several features on threads, and returns a function that waits for the scores,
    which have `linear_probe`'s bits.
    """
    started = {
        name: threads.submit(linear_probe, targets, *pair) for name, pair in features.items()
    }
    return lambda: {name: score.result() for name, score in started.items()}


def principal_components(
    train: TrainFeatures, test: TestFeatures
) -> tuple[
    Float[np.ndarray, "train_examples components"],
    Float[np.ndarray, "test_examples components"],
    Float[np.ndarray, " components"],
]:
    """Returns the largest principal components of standardised features, and their variances.

    There are 256, or one for 16 training examples, or as many as there are features or examples.
    """
    limit = max(NUM_COMPONENTS, train.shape[0] // EXAMPLES_PER_COMPONENT)
    count = min(limit, *train.shape)
    scaler = StandardScaler()
    scaled = scaler.fit_transform(train)
    is_tall = train.shape[0] >= train.shape[1]
    # The smaller one of the two products has the same eigenvalues; only the largest are computed.
    product = scaled.T @ scaled if is_tall else scaled @ scaled.T
    last = len(product) - 1
    squares, directions = scipy.linalg.eigh(product, subset_by_index=(last - count + 1, last))
    squares, directions = squares[::-1], directions[:, ::-1]
    if not is_tall:
        # Directions of no variance, as of examples that are all alike, become 0.
        least = max(float(squares[0]), 0.0) * len(product) * np.finfo(product.dtype).eps
        norms = np.sqrt(np.where(squares > least, squares, np.inf))
        directions = scaled.T @ (directions / norms)
    variances = np.maximum(squares, 0) / max(len(train) - 1, 1)
    return scaled @ directions, scaler.transform(test) @ directions, variances


def _search(targets: Targets, features: np.ndarray) -> tuple[float, float]:
    """Returns the highest cross-validated accuracy and the smallest strength that has it.

    Of neighbouring strengths accuracies differ by chance, so one that is worse ends nothing. Equal
    ones do neither: with few examples, strong penalties all predict the largest class.
    """
    best, chosen, num_worse = -1.0, STRENGTHS[0], 0
    for strength in STRENGTHS:
        accuracy = _cross_validate(targets, features, strength)
        num_worse = num_worse + 1 if accuracy < best else 0
        if num_worse == MAX_NUM_WORSE:
            break
        if accuracy > best:
            best, chosen = accuracy, strength
    return best, chosen


def _cross_validate(targets: Targets, features: np.ndarray, strength: float) -> float:
    """Returns the mean over the folds of the accuracy on each after a fit on the others."""
    classes, labels = np.unique(targets.train, return_inverse=True)
    subsets = np.zeros((len(targets.folds), len(labels)), bool)
    for subset, (others, _) in zip(subsets, targets.folds, strict=True):
        subset[others] = True
    fitted = fit_subsets(features, labels, subsets, strength)
    accuracies = []
    for parameters, (_, held_out) in zip(fitted, targets.folds, strict=True):
        scores = features[held_out] @ parameters[:, :-1].T + parameters[:, -1]
        predicted = classes[np.argmax(scores, axis=1)]
        accuracies.append(np.mean(predicted == targets.train[held_out]))
    return float(np.mean(accuracies))
