"""Guards the probes: nearest neighbours, logistic regression, and what choices may look at."""

import numpy as np
import pytest
import scipy.optimize

from m3ae_tpu.evaluation import probes


def clusters(seed, examples=240, features=12, classes=3, spread=1.0):
    """Returns noisy features around one random centre a class, and labels; centres do not depend on
    `seed`.
    """
    centres = np.random.default_rng(99).normal(size=(classes, features))
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, examples).astype(np.int32)
    return (centres[labels] + spread * random.normal(size=(examples, features))).astype(
        np.float32
    ), labels


def test_neighbors_vote_by_their_direction():
    train = np.array([[1, 0], [2, 0.1], [-1, 0], [-3, 0.2], [0, 1], [0.1, 4]], np.float32)
    labels = np.array([0, 0, 1, 1, 2, 2], np.int32)
    asked = np.array([[9, 0], [-0.5, 0], [0, 9]], np.float32)
    np.testing.assert_array_equal(
        probes.predict_neighbors(train, labels, asked, num_neighbors=2), [0, 1, 2]
    )


def test_neighbors_agree_with_a_full_sort_in_float64():
    (train, labels), (test, _) = clusters(0), clusters(1, examples=50)
    mean, std = train.mean(axis=0, dtype=np.float64), train.std(axis=0, dtype=np.float64)
    known, asked = (train - mean) / std, (test - mean) / std
    cosine = (
        asked @ known.T / np.linalg.norm(asked, axis=1)[:, None] / np.linalg.norm(known, axis=1)
    )
    expected = []
    for row in cosine:
        nearest = np.argsort(-row)[:10]
        expected.append(
            np.argmax(np.bincount(labels[nearest], np.exp(row[nearest] / 0.07), minlength=3))
        )
    np.testing.assert_array_equal(probes.predict_neighbors(train, labels, test), expected)


@pytest.mark.parametrize("strength", [0.001, 0.1, 10.0])
def test_logistic_regression_minimises_the_stated_objective(strength):
    features, labels = clusters(0, examples=60, features=4)
    features = features.astype(np.float64)

    def objective(flat):
        weights, bias = flat[:12].reshape(4, 3), flat[12:]
        scores = features @ weights + bias
        losses = np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(60), labels]
        return strength * losses.sum() + 0.5 * np.square(weights).sum()

    found = probes.fit_logistic(features, labels, 3, strength)
    best = scipy.optimize.minimize(
        objective, np.zeros(15), method="BFGS", options={"gtol": 1e-9}, tol=1e-12
    )
    assert objective(np.concatenate([found.weights.ravel(), found.bias])) == pytest.approx(
        best.fun, rel=1e-6
    )
    np.testing.assert_allclose(found.weights, best.x[:12].reshape(4, 3), atol=3e-3)


def test_principal_components_keep_distances_where_all_are_kept():
    features, _ = clusters(0, features=6)
    standard, _ = probes.standardize(features, features)
    projected, again = probes.principal_components(features, features)
    np.testing.assert_array_equal(projected, again)
    np.testing.assert_allclose(
        np.linalg.norm(projected[:-1] - projected[1:], axis=1),
        np.linalg.norm(standard[:-1] - standard[1:], axis=1),
        rtol=1e-4,
    )
    variances = projected.var(axis=0)
    assert np.all(np.diff(variances) <= 1e-4)


def test_few_examples_of_many_features_keep_their_distances():
    features, _ = clusters(0, examples=20, features=50)
    standard, _ = probes.standardize(features, features)
    projected, _ = probes.principal_components(features, features)
    assert projected.shape == (20, 19)
    np.testing.assert_allclose(projected @ projected.T, standard @ standard.T, atol=2e-3)


def test_constant_feature_counts_for_nothing():
    features = np.array([[0.1, 1], [0.1, 2], [0.1, 3]], np.float32)
    standard, _ = probes.standardize(features, features)
    np.testing.assert_array_equal(standard[:, 0], 0)


def test_linear_probe_learns_what_is_linear_and_nothing_from_noise():
    (train, labels), (test, test_labels) = clusters(0), clusters(1)
    folds = np.arange(240, dtype=np.int32) % 5
    score = probes.linear_probe(train, labels, test, test_labels, folds)
    assert score.accuracy > 0.9
    assert score.strength in probes.STRENGTHS
    noise = np.random.default_rng(3).normal(size=(2, 240, 12)).astype(np.float32)
    assert probes.linear_probe(noise[0], labels, noise[1], test_labels, folds).accuracy < 0.5


def test_choices_do_not_look_at_test_examples():
    (train, labels), (test, test_labels) = clusters(0), clusters(1)
    folds = np.arange(240, dtype=np.int32) % 5
    score = probes.linear_probe(train, labels, test, test_labels, folds)
    other = probes.linear_probe(
        train, labels, test[::-1].copy(), (2 - test_labels).astype(np.int32), folds
    )
    assert (score.strength, score.validation_accuracy) == (
        other.strength,
        other.validation_accuracy,
    )
    assert score.accuracy != other.accuracy


def test_pooling_is_chosen_by_validation_accuracy_alone():
    def score(validation, test):
        return probes.ProbeScore(
            accuracy=test, balanced_accuracy=test, validation_accuracy=validation, strength=0.1
        )

    assert probes.choose_pooling({"cls": score(0.4, 0.9), "mean": score(0.5, 0.1)}) == "mean"


def test_folds_keep_near_duplicates_together():
    folds = probes.assign_folds(["g00000a", "g00000b", "g00000a", "user group", "user group"])
    np.testing.assert_array_equal(folds[:3], [0, 1, 0])  # 0x0a = 10 is a multiple of 5.
    assert folds[3] == folds[4]


def test_neighbors_are_cross_validated_without_an_examples_own_group():
    features, labels = clusters(0, examples=60)
    twice, twice_labels = np.concatenate([features, features]), np.concatenate([labels, labels])
    wrong = np.where(np.arange(120) < 60, twice_labels, (twice_labels + 1) % 3).astype(np.int32)
    # Each example's twin carries another label: in its own fold it does no harm, in another one it
    # may.
    together = probes.cross_validate_neighbors(
        twice, twice_labels, np.tile(np.arange(60) % 5, 2).astype(np.int32)
    )
    apart = probes.cross_validate_neighbors(twice, wrong, np.repeat([0, 1], 60).astype(np.int32))
    assert together > 0.8 > apart


def test_bag_of_words_finds_the_words_that_tell():
    captions = [f"a {animal} {number}" for number in range(20) for animal in ("cat", "dog")]
    labels = np.array([0, 1] * 20, np.int32)
    folds = np.arange(40, dtype=np.int32) // 2 % 5
    score = probes.bag_of_words_probe(
        captions, labels, ["The DOG", "one cat"], np.array([1, 0], np.int32), folds
    )
    assert score.accuracy == 1


def test_balanced_accuracy_weighs_classes_alike():
    labels, predicted = np.array([0, 0, 0, 1], np.int32), np.array([0, 0, 0, 0], np.int32)
    assert probes.balanced_accuracy(predicted, labels) == 0.5
