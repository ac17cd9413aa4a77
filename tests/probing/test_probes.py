"""Guards the probes: their classifiers, and the data that choices may look at."""

import concurrent.futures

import numpy as np
import pytest
import scipy.optimize

from m3ae_tpu.probing.folds import make_folds
from m3ae_tpu.probing.linear import linear_probe, principal_components, start_linear_probes
from m3ae_tpu.probing.logistic_regression import LogisticRegression, fit_subsets
from m3ae_tpu.probing.neighbors import NUM_NEIGHBORS, neighbors_classifier, neighbors_probe
from m3ae_tpu.probing.scores import ProbeScore, Targets, balanced_accuracy, choose
from m3ae_tpu.probing.words import bag_of_words_probe


def clusters(seed, examples=240, features=12, classes=3):
    """Returns noisy features around a centre for each class, and labels.

    The centres do not depend on the seed.
    """
    centres = np.random.default_rng(99).normal(size=(classes, features))
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, examples).astype(np.int32)
    noise = random.normal(size=(examples, features))
    return (centres[labels] + noise).astype(np.float32), labels


def targets(labels, test_labels):
    groups = np.arange(len(labels), dtype=np.int32)
    return Targets(labels, test_labels, make_folds(labels, groups))


def test_neighbors_vote_by_their_direction():
    train = np.array([[1, 0], [2, 0.1], [-1, 0], [-3, 0.2], [0, 1], [0.1, 4]], np.float32)
    labels = np.array([0, 0, 1, 1, 2, 2], np.int32)
    classifier = neighbors_classifier(2).fit(train, labels)
    points = np.array([[9, 0], [-0.5, 0], [0, 9]], np.float32)
    np.testing.assert_array_equal(classifier.predict(points), [0, 1, 2])


def test_neighbors_agree_with_a_full_sort_in_float64():
    (train, labels), (test, _) = clusters(0), clusters(1, examples=50)
    mean, std = train.mean(axis=0, dtype=np.float64), train.std(axis=0, dtype=np.float64)
    scaled, scaled_test = (train - mean) / std, (test - mean) / std
    cosine = scaled_test @ scaled.T
    cosine /= np.linalg.norm(scaled_test, axis=1)[:, None] * np.linalg.norm(scaled, axis=1)
    expected = []
    for row in cosine:
        nearest = np.argsort(-row)[:10]
        votes = np.bincount(labels[nearest], np.exp(row[nearest] / 0.07), minlength=3)
        expected.append(np.argmax(votes))
    classifier = neighbors_classifier(NUM_NEIGHBORS).fit(train, labels)
    np.testing.assert_array_equal(classifier.predict(test), expected)


@pytest.mark.parametrize("strength", [0.001, 0.1, 10.0])
def test_logistic_regression_minimises_the_stated_objective(strength):
    features, labels = clusters(0, examples=60, features=4)
    features = features.astype(np.float64)

    def objective(flat):
        weights, bias = flat[:12].reshape(3, 4), flat[12:]
        scores = features @ weights.T + bias
        losses = np.log(np.exp(scores).sum(axis=1)) - scores[np.arange(60), labels]
        return strength * losses.sum() + 0.5 * np.square(weights).sum()

    found = LogisticRegression(strength).fit(features, labels)
    best = scipy.optimize.minimize(
        objective, np.zeros(15), method="BFGS", options={"gtol": 1e-9}, tol=1e-12
    )
    reached = objective(np.concatenate([found.coef_.ravel(), found.intercept_]))
    assert reached == pytest.approx(best.fun, rel=1e-6)
    np.testing.assert_allclose(found.coef_, best.x[:12].reshape(3, 4), atol=3e-3)


def test_logistic_regression_predicts_the_labels_it_was_given():
    features, labels = clusters(0)
    names = np.array([7, 20, 30])[labels]
    predicted = LogisticRegression().fit(features, names).predict(features)
    assert np.mean(predicted == names) > 0.9


def test_subsets_are_fitted_together_as_alone():
    features, labels = clusters(0)
    subsets = np.random.default_rng(2).random((3, 240)) < 0.5
    subsets[0] &= labels != 1  # A class that this subset lacks.
    together = fit_subsets(features.astype(np.float64), labels, subsets, 0.1)
    for parameters, subset in zip(together, subsets, strict=True):
        alone = LogisticRegression(0.1).fit(features[subset].astype(np.float64), labels[subset])
        present = np.unique(labels[subset])
        np.testing.assert_allclose(parameters[present, :-1], alone.coef_, atol=3e-3)
        scores = features @ parameters[:, :-1].T + parameters[:, -1]
        np.testing.assert_array_equal(np.argmax(scores, axis=1), alone.predict(features))
    assert together[0, 1, -1] == -np.inf


@pytest.mark.parametrize("num_features", [20, 90])
def test_principal_components_are_those_of_a_decomposition_in_float64(num_features):
    (train, _), (test, _) = (clusters(seed, 60, num_features) for seed in (0, 1))
    components, of_test, variances = principal_components(train, test)
    scaled = (train - train.mean(axis=0, dtype=np.float64)) / train.std(axis=0, dtype=np.float64)
    values = np.linalg.svd(scaled, compute_uv=False)
    np.testing.assert_allclose(variances[:19], values[:19] ** 2 / 59, rtol=1e-4)
    np.testing.assert_allclose(components.T @ components, np.diag(variances) * 59, atol=2e-2)
    assert of_test.shape == components.shape == (60, min(60, num_features))


def test_probes_at_once_have_the_bits_of_one_alone():
    (train, labels), (test, test_labels) = clusters(0), clusters(1)
    classes = targets(labels, test_labels)
    features = {f"{count} features": (train[:, :count], test[:, :count]) for count in (12, 5, 8)}
    with concurrent.futures.ThreadPoolExecutor(3) as threads:
        together = start_linear_probes(threads, classes, features)()
    assert [*together] == [*features]
    for name, pair in features.items():
        alone = linear_probe(classes, *pair)
        np.testing.assert_array_equal(together[name].predicted, alone.predicted)
        assert together[name].validation_accuracy == alone.validation_accuracy


def test_linear_probe_learns_what_is_linear_and_nothing_from_noise():
    (train, labels), (test, test_labels) = clusters(0), clusters(1)
    classes = targets(labels, test_labels)
    assert linear_probe(classes, train, test).accuracy > 0.9
    noise = np.random.default_rng(3).normal(size=(2, 240, 12)).astype(np.float32)
    assert linear_probe(classes, *noise).accuracy < 0.5


@pytest.mark.parametrize("num_features", [100, 300])
def test_few_examples_and_constant_features_are_no_obstacle(num_features):
    (train, labels), (test, test_labels) = (
        clusters(seed, examples=50, features=num_features) for seed in (0, 1)
    )
    train[:, 0] = test[:, 0] = 0.1
    assert linear_probe(targets(labels, test_labels), train, test).accuracy > 0.9


@pytest.mark.parametrize(("examples", "features"), [(30, 8), (40, 2), (60, 4)])
def test_a_rare_class_is_found_among_few_examples(examples, features):
    def of_one_in_five(seed, count):
        random = np.random.default_rng(seed)
        labels = (random.random(count) < 0.2).astype(np.int32)
        rows = random.normal(size=(count, features)).astype(np.float32)
        rows[:, 0] += 3 * labels
        return rows, labels

    (train, labels), (test, test_labels) = of_one_in_five(0, examples), of_one_in_five(1, 400)
    score = linear_probe(targets(labels, test_labels), train, test)
    assert score.accuracy > np.mean(test_labels == 0) + 0.05


@pytest.mark.parametrize(
    ("labels", "groups"),
    [
        ([0, 0, 1], [0, 1, 2]),
        ([0, 1] * 5, [0, 0, 1, 1] * 2 + [0, 1]),
        ([0, 1] * 10 + [2] * 3, [*range(20), 20, 20, 20]),
        ([0, 1, 0, 2, 3], range(5)),
    ],
)
def test_small_sets_are_probed_with_the_folds_that_they_have(labels, groups):
    labels = np.array(labels, np.int32)
    folds = make_folds(labels, np.array(groups, np.int32))
    classes = Targets(labels, labels[:2], folds)
    features = np.random.default_rng(0).normal(size=(len(labels), 12)).astype(np.float32)
    captions = [f"a class {label}" for label in labels]
    for score in (
        linear_probe(classes, features, features[:2]),
        linear_probe(classes, np.ones_like(features), features[:2]),
        neighbors_probe(classes, features, features[:2]),
        bag_of_words_probe(classes, captions, captions[:2]),
    ):
        assert score is not None
        assert 0 <= score.validation_accuracy <= 1
        assert 0 <= score.accuracy <= 1


def test_choices_do_not_look_at_test_examples():
    (train, labels), (test, test_labels) = clusters(0), clusters(1)
    score = linear_probe(targets(labels, test_labels), train, test)
    other_classes = targets(labels, (2 - test_labels).astype(np.int32))
    other = linear_probe(other_classes, train, test[::-1].copy())
    assert score.validation_accuracy == other.validation_accuracy
    assert score.accuracy != other.accuracy


def test_pooling_is_chosen_by_validation_accuracy_alone():
    def score(validation, test):
        return ProbeScore(
            accuracy=test,
            balanced_accuracy=test,
            validation_accuracy=validation,
            predicted=np.zeros(1, int),
        )

    assert choose({"cls": score(0.4, 0.9), "mean": score(0.5, 0.1)}) == "mean"


def test_neighbors_are_cross_validated_without_an_examples_own_group():
    features, labels = clusters(0, examples=60)
    twice = np.concatenate([features, features])
    right = np.concatenate([labels, labels])
    # An example's twin has another label: in the same fold it does no harm, in another one it does.
    wrong = np.concatenate([labels, (labels + 1) % 3]).astype(np.int32)
    strangers = np.arange(120, dtype=np.int32)
    twins = strangers % 60

    def validation(labels, groups):
        folds = make_folds(labels, groups)
        classes = Targets(labels, labels, folds)
        return neighbors_probe(classes, twice, twice).validation_accuracy

    assert validation(right, twins) > 0.7
    assert validation(wrong, strangers) < 0.4


def test_bag_of_words_finds_the_words_that_differ():
    captions = [f"a {animal} {number}" for number in range(20) for animal in ("cat", "dog")]
    classes = targets(np.array([0, 1] * 20, np.int32), np.array([1, 0], np.int32))
    score = bag_of_words_probe(classes, captions, ["The DOG", "one cat"])
    assert score is not None
    assert score.accuracy == 1


def test_captions_without_a_common_word_have_no_probe():
    classes = targets(np.array([0, 1] * 5, np.int32), np.array([0], np.int32))
    captions = [str(number) for number in range(10)]
    assert bag_of_words_probe(classes, captions, ["1"]) is None


def test_balanced_accuracy_weighs_classes_alike():
    labels, predicted = np.array([0, 0, 0, 1]), np.array([0, 0, 0, 0])
    assert balanced_accuracy(labels, predicted) == 0.5
