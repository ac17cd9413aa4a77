"""Guards the confusion of classes: what is counted, and which pairs come first."""

import numpy as np

from m3ae_tpu.probing.confusion import confusion_matrix, describe_confusion, most_confused

LABELS = np.array([0, 0, 0, 1, 1, 2, 2, 2])
PREDICTED = np.array([0, 1, 1, 1, 0, 2, 1, 1])


def test_rows_are_classes_and_columns_what_they_are_taken_for():
    matrix = confusion_matrix(LABELS, PREDICTED, 4)
    np.testing.assert_array_equal(matrix, [[1, 2, 0, 0], [1, 1, 0, 0], [0, 2, 1, 0], [0, 0, 0, 0]])
    assert matrix.sum() == len(LABELS)


def test_the_most_confused_pairs_come_first_with_their_examples():
    pairs = most_confused(LABELS, PREDICTED, num_examples=1)
    assert [pair[:3] for pair in pairs] == [(0, 1, 2), (2, 1, 2), (1, 0, 1)]
    assert [pair.examples for pair in pairs] == [[1], [6], [4]]
    assert most_confused(LABELS, LABELS) == []


def test_names_stand_for_classes():
    described = describe_confusion(LABELS, PREDICTED, ("cat", "dog", "fox"))
    assert described["pairs"][0] == {  # pyright: ignore[reportIndexIssue]
        "true": "cat",
        "predicted": "dog",
        "count": 2,
        "examples": [1, 2],
    }
