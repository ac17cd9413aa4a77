"""Guards few-shot probes: how many examples are drawn, and what is told of the draws."""

import numpy as np
import pytest

from m3ae_tpu.errors import UserError
from m3ae_tpu.probing.few_shot import draw_examples, few_shot_probe, require_shots
from m3ae_tpu.probing.scores import Targets


def clusters(seed):
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(3, dtype=np.int32), 20)
    centres = np.random.default_rng(99).normal(size=(3, 8))
    return (centres[labels] + 0.7 * random.normal(size=(60, 8))).astype(np.float32), labels


def test_a_draw_takes_as_many_of_each_class():
    labels = np.array([0, 1, 1, 2, 0, 2, 2, 1], np.int32)
    chosen = draw_examples(labels, 2, seed=(0, 2, 0))
    np.testing.assert_array_equal(labels[chosen], [0, 0, 1, 1, 2, 2])
    assert len(set(chosen)) == 6


def test_more_shots_are_better_and_seeds_repeat():
    (train, labels), (test, test_labels) = clusters(0), clusters(1)
    targets = Targets.of(labels, test_labels, np.arange(60, dtype=np.int32))
    scores = few_shot_probe(targets, train, test, shots=(1, 10), num_draws=6)
    assert [score.shots for score in scores] == [1, 10]
    assert scores[1].mean > max(scores[0].mean, 0.8)
    accuracies = [draw.accuracy for draw in scores[0].draws]
    assert scores[0].mean == pytest.approx(np.mean(accuracies))
    assert scores[0].deviation == pytest.approx(np.std(accuracies, ddof=1))
    again = few_shot_probe(targets, train, test, shots=(10,), num_draws=6)
    assert again[0].mean == scores[1].mean
    assert few_shot_probe(targets, train, test, shots=(5,), num_draws=1)[0].deviation == 0


def test_a_class_with_too_few_examples_is_named():
    labels = np.array([0, 0, 0, 1, 1], np.int32)
    require_shots(labels, ("cat", "dog"), (1, 2))
    with pytest.raises(UserError, match=r"--shots = 3 is more .* class dog: 2\. Set --shots"):
        require_shots(labels, ("cat", "dog"), (1, 3))
