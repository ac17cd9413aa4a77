"""Guards the detection of foreign images: the area under the curve, scores, and made images."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from m3ae_tpu.data.labelled import LabelledExamples
from m3ae_tpu.experiments.embedding import figures, scatter_plot, shown_examples
from m3ae_tpu.experiments.ood import FIGURES, auroc, aurocs, foreign_sets


def make_examples(count=12, size=32):
    random = np.random.default_rng(0)
    return LabelledExamples(
        images=random.integers(0, 256, (count, size, size, 3), np.uint8),
        text_ids=np.zeros((count, 0), np.int32),
        is_valid=np.zeros((count, 0), bool),
        labels=np.arange(count, dtype=np.int32) % 3,
        label_names=("a", "b", "c"),
        titles=("<dog>",) * count,
        groups=np.arange(count, dtype=np.int32),
        captions=("a red apple on a table",) * (count - 1) + ("",),
    )


def make_clusters(random, count):
    labels = np.arange(count, dtype=np.int32) % 3
    centers = np.eye(3, 8) * 20
    return (centers[labels] + random.normal(size=(count, 8))).astype(np.float32), labels


def test_the_area_is_that_of_scikit_learn_with_ties():
    random = np.random.default_rng(1)
    known, foreign = random.integers(0, 6, 50) * 1.0, random.integers(2, 9, 30) * 1.0
    truth = np.repeat([0, 1], [50, 30])
    expected = roc_auc_score(truth, np.concatenate([known, foreign]))
    assert auroc(known, foreign) == pytest.approx(expected)


def test_far_features_are_detected_and_near_ones_are_not():
    random = np.random.default_rng(2)
    train, labels = make_clusters(random, 150)
    known, _ = make_clusters(random, 90)
    alike, _ = make_clusters(random, 90)
    between = (random.normal(size=(90, 8)) * 1.0).astype(np.float32)
    found = aurocs(train, labels, known, {"alike": alike, "between": between})
    for name in FIGURES:
        assert found[f"{name}/alike"] == pytest.approx(0.5, abs=0.12)
        assert found[f"{name}/between"] > 0.75
        mean = (found[f"{name}/alike"] + found[f"{name}/between"]) / 2
        assert found[name] == pytest.approx(mean)


def test_foreign_images_have_the_form_of_known_ones_and_never_change():
    examples = make_examples()
    sets, again = foreign_sets(examples), foreign_sets(examples)
    assert sets.keys() == {"digits", "noise", "shuffled", "text"}
    for name, images in sets.items():
        assert images.shape == examples.images.shape
        assert images.dtype == np.uint8
        np.testing.assert_array_equal(images, again[name])
    for shuffled, image in zip(sets["shuffled"], examples.images, strict=True):
        np.testing.assert_array_equal(np.sort(shuffled, axis=None), np.sort(image, axis=None))
    assert (sets["text"] == 255).mean() > 0.4
    assert (sets["text"].reshape(12, -1).min(axis=1) < 100).all()


def test_classes_that_lie_apart_have_neighbours_of_their_own():
    features, labels = make_clusters(np.random.default_rng(3), 60)
    apart = figures(features, labels)
    mixed = figures(features, np.random.default_rng(4).permutation(labels))
    assert apart["neighbors"] > 0.9
    assert apart["neighbors_in_plot"] > 0.9
    assert apart["silhouette"] > 0.2 > mixed["silhouette"]
    assert mixed["neighbors"] < 0.6


def test_a_plot_has_a_dot_and_a_title_for_each_example():
    examples = shown_examples(make_examples())
    places = np.random.default_rng(5).normal(size=(12, 2)).astype(np.float32)
    plot = scatter_plot(places, examples.labels, examples.label_names, examples.titles)
    assert plot.count("<circle") == 12 + 3
    assert plot.count("&lt;dog&gt;") == 12
