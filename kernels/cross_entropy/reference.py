"""Projection and cross-entropy in plain jax.numpy: the truth in tests."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


class CrossEntropy(NamedTuple):
    """What a row's tokens that count say on average; 0 for a row without one."""

    loss: Float[Array, " batch"]
    """Cross-entropy, nats; float32 or wider."""
    accuracy: Float[Array, " batch"]
    """Share of the tokens whose best guess is right; of equal ones the lowest id is taken."""
    count: Int[Array, " batch"]
    """int32, tokens that count."""


def cross_entropy(
    x: Float[Array, "batch tokens width"],
    kernel: Float[Array, "width vocab"],
    bias: Float[Array, " vocab"],
    ids: Int[Array, "batch tokens"],
    counts: Bool[Array, "batch tokens"],
) -> CrossEntropy:
    """Projects tokens to a vocabulary and measures each row's cross-entropy with the true ids.

    Holds all `[batch, tokens, vocab]` logits at once, in float32 or wider.

    Args:
        x: Multiplied in its own dtype, to which `kernel` is cast.
        kernel: Column v yields the logit of id v.
        bias: Added to the logits.
        ids: int32, true ids, below `vocab`.
        counts: True for tokens that count; the others change nothing and have no gradient.
    """
    # As one matrix: on CPUs a gradient that contracts batch and tokens apart takes half as long
    # again.
    rows = x.reshape(-1, x.shape[2])
    logits = logits_of(rows, kernel.astype(x.dtype), bias)
    # A sum, as gathering a logit of each row has a scatter for gradient, which TPUs are slow at.
    is_true = jnp.arange(logits.shape[1], dtype=ids.dtype)[None] == ids.reshape(-1)[:, None]
    nll = jax.nn.logsumexp(logits, axis=1) - jnp.where(is_true, logits, jnp.zeros_like(logits)).sum(
        axis=1
    )
    is_right = jnp.argmax(logits, axis=1).astype(ids.dtype) == ids.reshape(-1)
    return mean_by_row(nll.reshape(ids.shape), is_right.reshape(ids.shape), counts)


def logits_of(
    x: Float[Array, "tokens width"],
    kernel: Float[Array, "width vocab"],
    bias: Float[Array, " vocab"],
) -> Float[Array, "tokens vocab"]:
    """Computes x @ kernel + bias, in float32 or wider."""
    wide = np.promote_types(x.dtype, np.float32)
    return jnp.dot(x, kernel, preferred_element_type=wide) + bias.astype(wide)[None]


def mean_by_row(
    nll: Float[Array, "batch tokens"],
    is_right: Bool[Array, "batch tokens"],
    counts: Bool[Array, "batch tokens"],
) -> CrossEntropy:
    """Averages what each token says over the tokens of its row that count."""
    count = counts.sum(axis=1, dtype=jnp.int32)
    divisor = jnp.maximum(count, 1).astype(nll.dtype)
    return CrossEntropy(
        loss=jnp.where(counts, nll, jnp.zeros((), nll.dtype)).sum(axis=1) / divisor,
        accuracy=(is_right & counts).sum(axis=1).astype(nll.dtype) / divisor,
        count=count,
    )
