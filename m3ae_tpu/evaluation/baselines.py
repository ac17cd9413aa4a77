"""Baselines without an encoder: counts of the tokenizer's pieces, and random projections."""

import warnings

import numpy as np
import scipy.sparse
from jaxtyping import Float32
from sklearn.exceptions import DataDimensionalityWarning
from sklearn.random_projection import GaussianRandomProjection

from m3ae_tpu.data.labelled import LabelledExamples

MAX_PIECES = 4096
"""Pieces that a probe of counts sees: of larger vocabularies the most frequent."""

type Counts = scipy.sparse.csr_array
"""float32 [examples, vocabulary]."""
type Pair[Features] = tuple[Features, Features]
"""Features of training and of test examples."""


def random_projection(
    features: Pair[np.ndarray] | Pair[Counts], size: int
) -> Pair[Float32[np.ndarray, "_ size"]]:
    """Projects features to `size` numbers with a Gaussian matrix, the same for any labels and run.

    Args:
        features: float32, of training and of test examples.
        size: Numbers of an example; more than there are features are allowed.
    """
    projection = GaussianRandomProjection(random_state=0).set_params(n_components=size)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DataDimensionalityWarning)
        train = projection.fit_transform(features[0])
    return train, projection.transform(features[1])


def count_pieces(examples: LabelledExamples, vocab_size: int) -> Counts:
    """Returns how often each of the tokenizer's pieces is in each caption, as the encoder sees it.

    Args:
        examples: With captions; what a run's text length cuts off is not counted.
        vocab_size: Pieces of the tokenizer.
    """
    rows, places = np.nonzero(examples.is_valid)
    ones = np.ones(len(rows), np.float32)
    positions = rows, examples.text_ids[rows, places]
    return scipy.sparse.coo_array((ones, positions), (len(examples), vocab_size)).tocsr()


def known_pieces(
    counts: Pair[Counts],
) -> Pair[Float32[np.ndarray, "_ pieces"]] | None:
    """Returns the counts of the pieces that training captions have; None if they have none."""
    captions = np.diff(counts[0].tocsc().indptr)
    # Stable: of equally frequent pieces the first ones.
    by_frequency = np.argsort(-captions, kind="stable")[:MAX_PIECES]
    columns = np.sort(by_frequency[captions[by_frequency] > 0])
    if not len(columns):
        return None
    train, test = (each[:, columns].toarray() for each in counts)
    return train, test
