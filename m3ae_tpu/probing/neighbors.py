"""Classification by nearest neighbours, in tiles, on all devices of a mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float32, Int, Int32
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler, normalize

from m3ae_tpu.parallel.mesh import make_mesh, replicated
from m3ae_tpu.parallel.row_map import RowMap
from m3ae_tpu.probing.scores import ProbeScore, Targets, TestFeatures, TrainFeatures

NUM_NEIGHBORS = 10
TEMPERATURE = 0.07
"""A neighbour votes with exp(cosine / temperature) (Wu et al. 2018, §3.4)."""
TILE = 1024
"""Training examples that a query is compared with at a time."""
ROWS_PER_DEVICE = 256
"""Queries that a device answers at a time."""


class Neighbors(ClassifierMixin, BaseEstimator):
    """Classifies by a vote of the training examples whose cosine with the example is largest."""

    def __init__(self, count: int = NUM_NEIGHBORS, mesh: Mesh | None = None):
        """Keeps the number of neighbours, and the devices that share the queries (None: all)."""
        self.count = count
        self.mesh = mesh

    def fit(
        self, features: TrainFeatures, labels: Int[np.ndarray, " train_examples"]
    ) -> "Neighbors":
        """Keeps the training examples."""
        self.classes_, self.labels_ = np.unique(labels, return_inverse=True)
        self.features_ = features
        return self

    def predict(self, features: TestFeatures) -> Int[np.ndarray, " test_examples"]:
        """Returns the class with the most votes for each example, of equal ones the first."""
        cosines, neighbors = nearest(self.features_, features, self.count, mesh=self.mesh)
        votes = np.exp(cosines.astype(np.float64) / TEMPERATURE)
        sums = np.zeros((len(features), len(self.classes_)))
        for place in range(self.count):
            sums[np.arange(len(features)), self.labels_[neighbors[:, place]]] += votes[:, place]
        return self.classes_[np.argmax(sums, axis=1)]


def neighbors_classifier(count: int, mesh: Mesh | None = None) -> Pipeline:
    """Returns a classifier by nearest neighbours, by the cosine of standardised features.

    Args:
        count: Neighbours that vote.
        mesh: Devices that share the queries; None: all.
    """
    return make_pipeline(StandardScaler(), Neighbors(count, mesh))


def neighbors_probe(
    targets: Targets, train: TrainFeatures, test: TestFeatures, *, mesh: Mesh | None = None
) -> ProbeScore:
    """Scores the vote of the nearest training examples; see `neighbors_classifier`."""
    count = num_neighbors(targets)
    classifier, accuracies = neighbors_classifier(count, mesh), []
    for others, held_out in targets.folds:
        classifier.fit(train[others], targets.train[others])
        is_right = classifier.predict(train[held_out]) == targets.train[held_out]
        accuracies.append(is_right.mean())
    predicted = classifier.fit(train, targets.train).predict(test)
    return ProbeScore.of(targets, predicted, float(np.mean(accuracies)), neighbors=count)


def num_neighbors(targets: Targets) -> int:
    """Returns how many neighbours vote: ten, or as many examples as the smallest fold leaves."""
    return min(NUM_NEIGHBORS, *(len(others) for others, _ in targets.folds))


def nearest(
    train: TrainFeatures, test: TestFeatures, count: int, *, mesh: Mesh | None = None
) -> tuple[Float32[np.ndarray, "test_examples count"], Int32[np.ndarray, "test_examples count"]]:
    """Returns cosines and indices of the nearest training examples, the nearest first.

    Of equally near ones the first comes first. A row of zeros has the cosine 0 with any.

    Args:
        train: Features of the training examples, at least `count` of them.
        test: Features of the queries.
        count: Neighbours of a query.
        mesh: Devices that share the queries; None: all.
    """
    # Whole tiles: sets of similar sizes share a compiled program.
    tiles = np.zeros((-(-len(train) // TILE), TILE, train.shape[1]), np.float32)
    tiles.reshape(-1, train.shape[1])[: len(train)] = normalize(train)
    mesh = make_mesh() if mesh is None else mesh
    whole = jax.device_put((tiles, np.int32(len(train))), replicated(mesh))
    return _search(mesh, count)(whole, np.asarray(normalize(test), np.float32))


@functools.cache
def _search(mesh: Mesh, count: int) -> RowMap:
    def search(
        whole: tuple[Float32[Array, "tiles tile features"], Int32[Array, ""]],
        queries: Float32[Array, "queries features"],
    ) -> tuple[Float32[Array, "queries count"], Int32[Array, "queries count"]]:
        tiles, num_examples = whole

        def visit(best, numbered):
            number, tile = numbered
            cosines = jnp.matmul(queries, tile.T, precision=jax.lax.Precision.HIGHEST)
            indices = number * TILE + jnp.arange(TILE, dtype=jnp.int32)
            cosines = jnp.where((indices < num_examples)[None], cosines, -jnp.inf)
            # Earlier examples stand before later ones: of equals the first are kept.
            cosines = jnp.concatenate([best[0], cosines], axis=1)
            indices = jnp.broadcast_to(indices[None], (len(queries), TILE))
            indices = jnp.concatenate([best[1], indices], axis=1)
            cosines, places = jax.lax.top_k(cosines, count)
            return (cosines, jnp.take_along_axis(indices, places, axis=1)), None

        start = (
            jnp.full((len(queries), count), -jnp.inf),
            jnp.zeros((len(queries), count), jnp.int32),
        )
        numbers = jnp.arange(len(tiles), dtype=jnp.int32)
        return jax.lax.scan(visit, start, (numbers, tiles))[0]

    return RowMap(search, mesh, rows_per_device=ROWS_PER_DEVICE)
