"""Classification heads on frozen features: linear, and attentive pooling of tokens."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Key, PyTree

from m3ae_tpu.probing.recipes import Recipe

NUM_QUERIES = 32
"""Learned queries of attentive pooling, or the largest divisor of the width below."""

type Pooled = Float[Array, "batch features"]


class Head(NamedTuple):
    """Pooling of an example's features, and what stands before the linear classifier of it."""

    init: Callable[[Key[Array, ""], int], PyTree]
    """Draws the parameters of the pooling for features of a width."""
    pool: Callable[[PyTree, Array], Pooled]
    """Makes one vector of each example's features."""
    is_normalised: bool
    """True standardises vectors by the moments of their batch, as batch normalisation without
    scale and bias does. Fixed features are standardised once, before training.
    """


class Parameters(NamedTuple):
    """Parameters of a head."""

    pooling: PyTree
    kernel: Float[Array, "features classes"]
    bias: Float[Array, " classes"]


LINEAR = Head(init=lambda key, width: (), pool=lambda _, features: features, is_normalised=False)
"""Vectors as they are."""


def attentive_head() -> Head:
    """Returns efficient probing (Psomas et al. 2026, arXiv 2506.10178): attention by queries.

    Each learned query weighs the tokens by a softmax of its products with them, without a
    projection of keys, and pools a slice of the projected values.
    """

    def init(key: Key[Array, ""], width: int) -> PyTree:
        query_key, value_key = jax.random.split(key)
        count = max(number for number in range(1, NUM_QUERIES + 1) if width % number == 0)
        bound = 1 / math.sqrt(width)
        return {
            "queries": 0.02 * jax.random.normal(query_key, (count, width)),
            "values": jax.random.uniform(value_key, (width, width), minval=-bound, maxval=bound),
        }

    def pool(parameters: PyTree, tokens: Float[Array, "batch tokens width"]) -> Pooled:
        queries, values = parameters["queries"], parameters["values"]
        tokens = tokens.astype(jnp.float32)
        count, width = queries.shape
        scores = jnp.einsum("qc,btc->bqt", queries, tokens) / math.sqrt(width)
        # Sums of tokens are projected, not tokens: as many times less work as there are tokens.
        means = jnp.einsum("bqt,btc->bqc", jax.nn.softmax(scores, axis=-1), tokens)
        slices = values.reshape(width, count, width // count)
        return jnp.einsum("bqc,cqs->bqs", means, slices).reshape(len(tokens), width)

    return Head(init=init, pool=pool, is_normalised=True)


def init_parameters(
    head: Head, key: Key[Array, ""], *, width: int, num_classes: int, recipe: Recipe
) -> Parameters:
    """Draws the parameters of a head; the bias is 0."""
    pooling_key, kernel_key = jax.random.split(key)
    kernel = recipe.init_kernel(kernel_key, (width, num_classes), jnp.float32)
    return Parameters(head.init(pooling_key, width), kernel, jnp.zeros(num_classes))


def shares(is_counted: Bool[Array, " batch"]) -> Float[Array, " batch"]:
    """Returns the weight of each row in a mean of those that count."""
    counted = is_counted.astype(jnp.float32)
    return counted / counted.sum()


def batch_loss(
    head: Head,
    parameters: Parameters,
    features: Array,
    labels: Array,
    is_counted: Bool[Array, " batch"],
    epsilon: float,
) -> Float[Array, ""]:
    """Returns the mean cross-entropy of the rows that count; the others have no influence."""
    pooled = head.pool(parameters.pooling, features)
    weights = shares(is_counted)
    if head.is_normalised:
        pooled = pooled - (weights @ pooled)[None]
        pooled /= jnp.sqrt(weights @ jnp.square(pooled) + epsilon)[None]
    logits = pooled @ parameters.kernel + parameters.bias[None]
    return weights @ optax.softmax_cross_entropy_with_integer_labels(logits, labels)
