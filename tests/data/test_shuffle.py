"""Guards orders of records: each once an epoch, any stretch by itself, no pattern in them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3ae_tpu.data.shuffle import shuffled

SEEDS = st.integers(0, 2**64 - 1)


def epochs(number: int, count: int, seed: int = 0) -> np.ndarray:
    return shuffled(np.arange(number * count), count, seed).reshape(number, count)


@given(st.integers(1, 3_000), SEEDS)
def test_every_epoch_holds_each_record_once(count, seed):
    np.testing.assert_array_equal(
        np.sort(epochs(3, count, seed)), np.tile(np.arange(count), (3, 1))
    )


@given(st.integers(1, 10**15), st.integers(0, 10**15), SEEDS)
def test_a_stretch_of_the_walk_is_the_same_wherever_it_begins(count, start, seed):
    whole = shuffled(np.arange(start, start + 20), count, seed)
    np.testing.assert_array_equal(
        shuffled(np.arange(start + 7, start + 20), count, seed), whole[7:]
    )
    assert np.all((whole >= 0) & (whole < count))


@pytest.mark.parametrize("count", [8, 30, 961])
def test_orders_look_uniform(count):
    number = 200_000 // count
    orders = epochs(number, count)
    expected_place = number / count
    at_places = np.zeros((count, count))
    np.add.at(at_places, (np.broadcast_to(np.arange(count), orders.shape), orders), 1)
    steps = np.bincount(np.ravel(np.diff(orders) % count), minlength=count)[1:]
    for seen, expected, freedom in (
        (at_places, expected_place, (count - 1) ** 2),
        (steps, number, count - 2),
    ):
        chi_squared = np.sum((seen - expected) ** 2 / expected)
        assert abs(chi_squared - freedom) < 5 * np.sqrt(2 * freedom)
    stayed = np.sum(orders[1:] == orders[:-1])
    assert abs(stayed - number) < 5 * np.sqrt(number)


def test_seeds_that_differ_little_give_orders_that_have_nothing_in_common():
    orders = [epochs(2, 500, seed).ravel() for seed in (0, 1, 2**32, 2**63)]
    for index, order in enumerate(orders):
        for other in orders[:index]:
            assert np.sum(order == other) < 12
            # A shuffle that adds the epoch to its seed walks through the same orders, one epoch
            # apart.
            assert np.sum(order[500:] == other[:500]) < 12


def test_orders_stay_what_they_were_in_earlier_versions():
    assert shuffled(np.arange(8, 16), 8, 7).tolist() == [4, 3, 1, 7, 2, 6, 0, 5]
    assert shuffled(np.array([0, 10**12]), 10**10, 7).tolist() == [8851029270, 5295211423]
