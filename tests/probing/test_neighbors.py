"""Guards nearest neighbours in tiles: they are those of a brute-force search."""

import jax
import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from m3ae_tpu.parallel.mesh import make_mesh
from m3ae_tpu.probing import neighbors
from m3ae_tpu.probing.neighbors import TEMPERATURE, TILE, Neighbors, nearest


@pytest.mark.parametrize(("train_size", "test_size"), [(30, 1), (TILE, 40), (2 * TILE + 77, 300)])
def test_neighbors_are_those_of_scikit_learn(train_size, test_size):
    random = np.random.default_rng(0)
    train = random.normal(size=(train_size, 12)).astype(np.float32)
    test = random.normal(size=(test_size, 12)).astype(np.float32)
    cosines, indices = nearest(train, test, 10)
    brute = NearestNeighbors(n_neighbors=10, metric="cosine", algorithm="brute").fit(train)
    distances, expected = brute.kneighbors(test)
    np.testing.assert_allclose(1 - cosines, distances, atol=1e-5)
    np.testing.assert_array_equal(indices, expected)


def test_votes_are_those_of_scikit_learn():
    random = np.random.default_rng(1)
    train = random.normal(size=(400, 6)).astype(np.float32)
    test = random.normal(size=(200, 6)).astype(np.float32)
    labels = random.integers(3, 7, 400)
    theirs = KNeighborsClassifier(
        10,
        metric="cosine",
        algorithm="brute",
        weights=lambda far: np.exp((1 - far) / TEMPERATURE),  # pyright: ignore[reportArgumentType]
    ).fit(train, labels)
    ours = Neighbors(10).fit(train, labels)
    np.testing.assert_array_equal(ours.predict(test), theirs.predict(test))


def test_of_equally_near_neighbors_the_first_counts_in_any_tile(monkeypatch):
    train = np.ones((TILE + 5, 3), np.float32)
    _, indices = nearest(train, train[:2], 4)
    np.testing.assert_array_equal(indices, [[0, 1, 2, 3]] * 2)


def test_rows_of_zeros_are_near_to_nothing():
    train = np.array([[0, 0], [-1, 0], [1, 0.5]], np.float32)
    cosines, indices = nearest(train, np.array([[1, 0.5], [0, 0]], np.float32), 3)
    np.testing.assert_array_equal(indices[0], [2, 0, 1])
    np.testing.assert_allclose(cosines[1], 0)


def test_one_device_finds_what_eight_find():
    random = np.random.default_rng(0)
    train, test = random.normal(size=(100, 5)), random.normal(size=(33, 5))
    eight = nearest(train, test, 3)
    one = nearest(train, test, 3, mesh=make_mesh(devices=jax.devices()[:1]))
    np.testing.assert_array_equal(eight[1], one[1])
    assert neighbors.NUM_NEIGHBORS == 10
