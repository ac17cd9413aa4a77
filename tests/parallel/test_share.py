"""Guards that the processes of a mesh make each row of a batch once, wherever their devices lie."""

import numpy as np
import pytest

from m3ae_tpu.parallel.share import Share, in_order, share_in

# Hosts of a slice hold squares of chips: their rows of the batch are not neighbours.
SQUARES = [[0], [0], [1], [1], [0], [0], [1], [1]]


def test_a_process_makes_the_parts_that_its_devices_hold():
    assert share_in(np.array(SQUARES), 1) == Share((2, 3, 6, 7), 8, True)
    assert share_in(np.array([[0], [0], [1], [1]]), 1) == Share((2, 3), 4, True)


def test_processes_that_share_rows_over_tensor_count_them_once():
    holders = np.array([[0, 1], [2, 3]])
    shares = [share_in(holders, process) for process in range(4)]
    assert [share.parts for share in shares] == [(0,), (0,), (1,), (1,)]
    assert [share.is_first for share in shares] == [True, False, True, False]


@pytest.mark.parametrize("holders", [SQUARES, [[1], [0]], [[0, 1], [2, 3]]])
def test_items_come_in_the_order_of_the_batch(holders):
    shares = [share_in(np.array(holders), process) for process in range(1 + np.max(holders))]
    items = [
        [row for part in share.parts for row in (2 * part, 2 * part + 1) if share.is_first]
        for share in shares
    ]
    assert in_order(shares, items) == list(range(2 * shares[0].num_parts))
