"""Projection and cross-entropy in plain jax.numpy: the truth in tests."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


class CrossEntropy(NamedTuple):
    """Averages over the counted tokens of each row; 0 for a row without one."""

    loss: Float[Array, " batch"]
    """Cross-entropy, nats; float32 or wider."""
    accuracy: Float[Array, " batch"]
    """Share of the tokens whose best guess is right; of equal logits the lowest id is the guess."""
    count: Int[Array, " batch"]
    """int32, counted tokens."""


def cross_entropy(
    x: Float[Array, "batch tokens width"],
    kernel: Float[Array, "width vocab"],
    bias: Float[Array, " vocab"],
    ids: Int[Array, "batch tokens"],
    is_counted: Bool[Array, "batch tokens"],
) -> CrossEntropy:
    """Projects tokens to a vocabulary and averages their cross-entropy with the true ids by row.

    Holds all `[batch, tokens, vocab]` logits at once, in float32 or wider.

    Args:
        x: Hidden tokens; multiplied in their own dtype, to which `kernel` is cast.
        kernel: Column v yields the logit of id v.
        bias: Added to the logits.
        ids: int32, true ids, below `vocab`.
        is_counted: True for tokens that enter their row's average; the others have no effect and no
            gradient.
    """
    # As one matrix: on CPUs a gradient that contracts batch and tokens separately takes 1.5 times
    # as long.
    rows = x.reshape(-1, x.shape[2])
    logits = logits_of(rows, kernel.astype(x.dtype), bias)
    # A masked sum: the gradient of a gather would be a scatter, which is slow on TPUs.
    is_true = jnp.arange(logits.shape[1], dtype=ids.dtype)[None] == ids.reshape(-1)[:, None]
    nll = jax.nn.logsumexp(logits, axis=1) - jnp.where(is_true, logits, jnp.zeros_like(logits)).sum(
        axis=1
    )
    is_right = jnp.argmax(logits, axis=1).astype(ids.dtype) == ids.reshape(-1)
    return mean_by_row(nll.reshape(ids.shape), is_right.reshape(ids.shape), is_counted)


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
    is_counted: Bool[Array, "batch tokens"],
) -> CrossEntropy:
    """Averages cross-entropy and accuracy over the counted tokens of each row."""
    count = is_counted.sum(axis=1, dtype=jnp.int32)
    divisor = jnp.maximum(count, 1).astype(nll.dtype)
    return CrossEntropy(
        loss=jnp.where(is_counted, nll, jnp.zeros((), nll.dtype)).sum(axis=1) / divisor,
        accuracy=(is_right & is_counted).sum(axis=1).astype(nll.dtype) / divisor,
        count=count,
    )
