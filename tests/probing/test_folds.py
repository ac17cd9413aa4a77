"""Guards the folds of training examples: groups stay whole, and small sets have fewer folds."""

import numpy as np
import pytest

from m3ae_tpu.probing.folds import make_folds


def folds_of(labels, groups):
    return make_folds(np.array(labels, np.int32), np.array(groups, np.int32))


def test_folds_keep_groups_together_and_classes_apart():
    labels = np.arange(60) % 3
    fold_of = np.full(60, -1)
    for number, (others, held_out) in enumerate(folds_of(labels, np.arange(60) // 2)):
        assert sorted([*others, *held_out]) == list(range(60))
        assert np.bincount(labels[held_out]).tolist() == [4, 4, 4]
        fold_of[held_out] = number
    assert sorted(set(fold_of)) == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(fold_of[::2], fold_of[1::2])


@pytest.mark.parametrize("num_groups", [2, 3, 4, 7])
def test_few_groups_make_as_many_folds(num_groups):
    labels = np.arange(4 * num_groups) % 2
    folds = folds_of(labels, np.arange(4 * num_groups) // 4)
    assert len(folds) == min(5, num_groups)
    assert all(len(others) and len(held_out) for others, held_out in folds)


def test_a_fold_that_nothing_can_be_learned_for_is_left_out():
    # Without the only dog there is one class to learn from.
    folds = folds_of([0, 0, 1], [0, 1, 2])
    assert [[sorted(part) for part in fold] for fold in folds] == [[[0, 2], [1]]] or [
        [sorted(part) for part in fold] for fold in folds
    ] == [[[1, 2], [0]]]


@pytest.mark.parametrize(
    ("labels", "groups"),
    [
        ([], []),
        ([0], [0]),
        ([0, 1], [0, 1]),
        ([0] * 20, range(20)),
        ([0, 1] * 10, [3] * 20),
        (range(10), range(10)),
        ([0, 0, 1, 1], [0, 0, 1, 1]),
        ([0, 0, 1, 2], [0, 0, 1, 2]),
    ],
)
def test_sets_that_are_too_small_have_no_fold(labels, groups):
    assert folds_of(labels, groups) == []
