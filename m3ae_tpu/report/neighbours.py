"""The training examples nearest to some held-out ones, by features of images and of captions."""

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np
from jaxtyping import Array, Float32, Int, Int32
from sklearn.preprocessing import StandardScaler, normalize

from m3ae_tpu.batch import Rows
from m3ae_tpu.data.labelled import LabelledExamples, read_labelled
from m3ae_tpu.data.shards import open_shards
from m3ae_tpu.errors import require
from m3ae_tpu.evaluation.features import IMAGE_POOLINGS, TEXT_POOLINGS, pool_images, pool_texts
from m3ae_tpu.model.m3ae import M3AE
from m3ae_tpu.parallel.row_map import RowMap
from m3ae_tpu.pretrained.pretrained import Pretrained
from m3ae_tpu.pretrained.task import ReconstructionTask

MOST_SEARCHED = 700
"""Training examples that are searched at most: to encode more takes longer than a page is worth."""
NUM_QUERIES = 8
SEED = 7
"""Decides the queries and the examples that are searched: any; the same for every run."""
_OF_CAPTIONS = "every_layer"
CAPTION_FEATURES = TEXT_POOLINGS[_OF_CAPTIONS]
"""Features of captions, described."""
_NUM_NEIGHBOURS = {"image": 6, "caption": 4}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Strip:
    """One query and its neighbours, the nearest first: indices of examples."""

    query: int
    neighbours: tuple[int, ...]
    agrees: tuple[bool, ...]
    """True for a neighbour of the query's class."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Neighbours:
    """Strips by the features of images and of captions, and the examples that they are of."""

    queries: LabelledExamples
    searched: LabelledExamples
    num_train: int
    """Training examples that `searched` was drawn from."""
    strips: Mapping[str, tuple[Strip, ...]]
    """By `image` and by `caption`, as far as the run has learned them; no strip where no example
    has a caption.
    """
    pooling: str
    """Pooling of the features of images, described."""

    def chance(self, kind: str) -> float:
        """Returns how many neighbours would agree with their query if they were drawn at random."""
        names = np.array(self.searched.label_names)[self.searched.labels]
        if kind == "caption":
            names = names[self.searched.has_caption]
        return sum(
            len(strip.neighbours) * float((names == _label(self.queries, strip.query)).mean())
            for strip in self.strips[kind]
        )


def find_neighbours(
    run: Pretrained, test: LabelledExamples, train_shards: str, pooling: str
) -> Neighbours:
    """Finds the nearest training examples of queries drawn at random from each class in turn.

    Near is a large cosine of standardised features, as in the k-NN probe: of images by a pooling of
    it, of captions by `CAPTION_FEATURES`.

    Args:
        run: Its encoder makes the features.
        test: Held-out examples.
        train_shards: Labelled shards of training examples.
        pooling: Name of the pooling of images.

    Raises:
        UserError: the shards cannot be read, or have no labels, or the pooling is unknown.
    """
    shards, random = open_shards(train_shards), np.random.default_rng(SEED)
    chosen = random.permutation(len(shards))[:MOST_SEARCHED]
    searched = read_labelled(
        shards,
        image_size=run.config.data.image_size,
        tokenizer=run.tokenizer,
        text_length=run.text_length,
        indices=np.sort(chosen).tolist(),
    )
    queries = test.take(draw_queries(test.labels, NUM_QUERIES, random))
    require(
        pooling in IMAGE_POOLINGS,
        f"knn/pooling = {pooling} of the evaluation is unknown. Evaluate the run again.",
    )
    pool = RowMap(functools.partial(_pool, task=run.task, pooling=pooling), run.mesh)
    query_features, features = (
        pool(run.model, run.task.rows(examples)) for examples in (queries, searched)
    )
    strips = {
        kind: _strips(kind, queries, query_features[kind], searched, features[kind])
        for kind in features
    }
    return Neighbours(
        queries=queries,
        searched=searched,
        num_train=len(shards),
        strips=strips,
        pooling=IMAGE_POOLINGS[pooling],
    )


def draw_queries(
    labels: Int32[np.ndarray, " examples"], count: int, random: np.random.Generator
) -> Int[np.ndarray, " chosen"]:
    """Draws up to `count` examples: one of each class, in a random order, then a second, ..."""
    order = random.permutation(len(labels))
    rank = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels[order] == label)
        rank[of_class] = np.arange(len(of_class))
    return order[np.argsort(rank, kind="stable")][:count]


def _pool(
    model: M3AE, rows: Rows, *, task: ReconstructionTask, pooling: str
) -> dict[str, Float32[Array, "batch features"]]:
    features = {}
    if rows.images is not None:
        features["image"] = pool_images(model, rows.images, normalizer=task.normalizer)[pooling]
    if rows.text_ids is not None:
        features["caption"] = pool_texts(model, rows, normalizer=task.normalizer)[_OF_CAPTIONS]
    return features


def _strips(
    kind: str,
    queries: LabelledExamples,
    query_features: Float32[np.ndarray, "queries width"],
    searched: LabelledExamples,
    features: Float32[np.ndarray, "searched width"],
) -> tuple[Strip, ...]:
    """Returns a strip for each query; of captions only where there is one."""
    asked, candidates = np.arange(len(queries)), np.arange(len(searched))
    if kind == "caption":
        asked, candidates = (
            np.flatnonzero(examples.has_caption) for examples in (queries, searched)
        )
    if not len(asked) or not len(candidates):
        return ()
    scaler = StandardScaler().fit(features[candidates])
    directions = normalize(np.asarray(scaler.transform(features[candidates])))
    query_directions = normalize(np.asarray(scaler.transform(query_features[asked])))
    cosines = np.asarray(query_directions) @ np.asarray(directions).T
    nearest = np.argsort(-cosines, axis=1, kind="stable")[:, : _NUM_NEIGHBOURS[kind]]
    strips = []
    for query, found in zip(asked.tolist(), candidates[nearest].tolist(), strict=True):
        own = _label(queries, query)
        agrees = tuple(_label(searched, index) == own for index in found)
        strips.append(Strip(query=query, neighbours=tuple(found), agrees=agrees))
    return tuple(strips)


def _label(examples: LabelledExamples, index: int) -> str:
    return examples.label_names[examples.labels[index]]
