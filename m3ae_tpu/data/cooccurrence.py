"""Word vectors from counts: pieces that stand in the same texts get similar ones."""

import sys
from collections.abc import Iterable, Iterator

import numpy as np
import rich.progress
import scipy.sparse
from jaxtyping import Float32, Int32
from sklearn.utils.extmath import randomized_svd
from threadpoolctl import threadpool_limits

from m3ae_tpu.data.examples import Examples
from m3ae_tpu.data.sources import OpenData

MAX_RECORDS = 100_000
"""Records that are read of each source, evenly spaced in it: bounds time and memory."""
_SMOOTHING = 0.75  # Of the contexts' frequencies (Levy, Goldberg and Dagan 2015).


def cooccurrence_vectors(data: OpenData, vocab_size: int, size: int) -> Float32[np.ndarray, "_ _"]:
    """Computes a vector for each piece from the texts of a run's data.

    Two pieces that stand in the same text more often than by chance have a positive pointwise
    mutual information. Its matrix, negative values set to 0, is what skip-gram factorises (Levy and
    Goldberg 2014); the vectors are its leading left singular vectors, times the roots of the
    singular values. The same data give the same bits, on one kind of machine.

    Args:
        data: A run's. Every caption of a record counts as a text, cut to its source's length.
        vocab_size: Number of vectors.
        size: Numbers of a vector, by falling singular value.

    Returns:
        float32, scaled to a mean square of 1 over all pieces that stand beside another one; 0 for
        pieces that never do, and in the columns that a small corpus cannot fill.

    Raises:
        DataError: a shard is gone or was changed.
    """
    information = _mutual_information(_texts(data), vocab_size)
    rank = min(size, vocab_size)
    # With more threads, the order of sums and so the bits would depend on their number.
    with threadpool_limits(limits=1, user_api="blas"):
        left, singular_values, _ = randomized_svd(information, rank, random_state=0)
    vectors = np.zeros((vocab_size, size), np.float32)
    vectors[:, :rank] = left * np.sqrt(singular_values)
    is_known = information.sum(axis=1) > 0
    vectors[~is_known] = 0  # Rounding leaves traces.
    mean_square = np.square(vectors).sum() / max(1, is_known.sum() * size)
    return vectors / np.float32(max(mean_square, 1e-12) ** 0.5)


def _mutual_information(
    texts: Iterable[Int32[np.ndarray, " pieces"]], vocab_size: int
) -> scipy.sparse.csr_array:
    """Returns the positive pointwise mutual information [piece, context], float32.

    Args:
        texts: The different pieces of each text.
        vocab_size: Number of pieces.
    """
    pieces = list(texts)
    ends = np.cumsum([0, *(len(each) for each in pieces)])
    columns = np.concatenate([np.zeros(0, np.int32), *pieces])
    ones = np.ones(len(columns), np.float32)
    shape = len(pieces), vocab_size
    has_piece = scipy.sparse.csr_array((ones, columns, ends), shape=shape)
    together = (has_piece.T @ has_piece).tocoo()
    is_pair = together.row != together.col
    rows, contexts = together.row[is_pair], together.col[is_pair]
    counts = together.data[is_pair].astype(np.float64)
    frequency = np.bincount(rows, counts, minlength=vocab_size)
    smoothed = frequency**_SMOOTHING
    expected = frequency[rows] * smoothed[contexts] / max(smoothed.sum(), 1)
    information = np.log(counts / expected)
    is_positive = information > 0
    positions = rows[is_positive], contexts[is_positive]
    values = information[is_positive].astype(np.float32)
    return scipy.sparse.coo_array((values, positions), (vocab_size, vocab_size)).tocsr()


def _texts(data: OpenData) -> Iterator[Int32[np.ndarray, " pieces"]]:
    """Yields the different pieces of each text; broken records are left out."""
    assert data.tokenizer is not None
    for source, shards, split in zip(data.sources, data.shards, data.splits, strict=True):
        if source.kind == "image":
            continue
        examples = Examples(shards, source.kind, split)
        chosen = split[:: -(-len(split) // MAX_RECORDS)]
        title, is_shown = f"reading the texts of {shards.pattern}", sys.stdout.isatty()
        for index in rich.progress.track(chosen, title, transient=True, disable=not is_shown):
            example = examples.read(index)
            if isinstance(example, str):
                continue
            ids, is_valid, _ = data.tokenizer.encode(example.captions, source.config.text_length)
            for text, is_piece in zip(ids, is_valid, strict=True):
                yield np.unique(text[is_piece])
