"""Initial word vectors of a model from the texts of its data, in place of random ones."""

import functools
import logging

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.data.sources import OpenData
from m3ae_tpu.model.m3ae import M3AE
from m3ae_tpu.model.modality import Embedding
from m3ae_tpu.parallel.processes import array_from_leader
from m3ae_tpu.train.objective import Objective

_LOG = logging.getLogger(__name__)


def with_initial_words(objective: Objective, config: PretrainConfig, data: OpenData) -> Objective:
    """Returns an objective whose model begins with the word vectors that the config asks for.

    Args:
        objective: The pre-training of this config.
        config: A run's.
        data: The run's; its texts are read where a run begins, not where it resumes.
    """
    if config.initial_words == "random" or data.tokenizer is None:
        return objective
    return objective._replace(with_weights=functools.partial(_with_vectors, data))


def _with_vectors(data: OpenData, model: M3AE) -> M3AE:
    """Returns a model with vectors from counts as word embeddings and as the text head's kernel.

    The head takes the leading numbers of each vector, over the root of the decoder's width: logits
    begin near a variance of 1. A piece that stands beside no other in any text keeps its random
    values.
    """
    from m3ae_tpu.data.cooccurrence import cooccurrence_vectors  # Only where a run begins.

    assert model.text is not None
    assert model.text.head is not None
    assert isinstance(model.text.embedding, Embedding)
    table, kernel = model.text.embedding.table, model.text.head.kernel
    (vocab_size, width), decoder_width = table.shape, kernel.shape[0]
    shape = vocab_size, max(width, decoder_width)
    _LOG.info("counting which pieces stand in the same texts, for the initial word vectors")
    vectors = array_from_leader("word vectors", lambda: cooccurrence_vectors(data, *shape), shape)
    logits = vectors[:, :decoder_width].T / np.float32(decoder_width**0.5)
    return eqx.tree_at(
        lambda model: (model.text.embedding.table, model.text.head.kernel),
        model,
        (_where_known(table, vectors[:, :width], axis=1), _where_known(kernel, logits, axis=0)),
    )


def _where_known(
    drawn: Float[Array, "_ _"], counted: Float32[np.ndarray, "_ _"], *, axis: int
) -> Float[Array, "_ _"]:
    """Returns counted vectors, along an axis, in the place of those drawn; where 0, the latter."""

    def replaced(drawn, counted):
        is_known = (counted != 0).any(axis=axis, keepdims=True)
        return jnp.where(is_known, counted.astype(drawn.dtype), drawn)

    return jax.jit(replaced, out_shardings=drawn.sharding)(drawn, counted)
