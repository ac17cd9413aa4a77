"""The operations in plain jax.numpy: the truth in tests, and what runs where no kernel does."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


def attention_weights(
    qkv: Float[Array, "batch tokens 3 width"],
    valid: Bool[Array, "batch tokens"] | None,
    num_heads: int,
) -> Float[Array, "batch heads tokens tokens"]:
    """Computes softmax(query keyᵀ / √head_dim) over the valid keys, in float32 or wider.

    Args:
        qkv: Queries, keys and values as one projection yields them; head h owns the channels
            `h * head_dim` to `(h + 1) * head_dim` of each.
        valid: True for tokens that may be attended to; None: all. The weight of any other key is
            exactly 0; a row without a valid key has only zeros.
        num_heads: Divides `width`.
    """
    batch, tokens, _, width = qkv.shape
    heads = qkv.reshape(batch, tokens, 3, num_heads, width // num_heads)
    query, key = heads[:, :, 0], heads[:, :, 1]
    wide = np.promote_types(qkv.dtype, np.float32)
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=wide)
    logits = logits * (width // num_heads) ** -0.5
    if valid is None:
        return jax.nn.softmax(logits, axis=-1)
    is_key = valid[:, None, None, :]
    # A finite stand-in for -inf keeps rows without a valid key free of NaN, also in gradients.
    logits = jnp.where(is_key, logits, jnp.finfo(wide).min)
    return jnp.where(is_key, jax.nn.softmax(logits, axis=-1), jnp.zeros((), wide))


def attention(
    qkv: Float[Array, "batch tokens 3 width"],
    valid: Bool[Array, "batch tokens"] | None,
    num_heads: int,
) -> Float[Array, "batch tokens width"]:
    """Computes multi-head attention of packed queries, keys and values.

    Holds all `[batch, heads, tokens, tokens]` weights at once. The output has the input's dtype;
    outputs of invalid tokens are defined (they attend to the valid ones) but mean nothing.

    Args:
        qkv: As for `attention_weights`.
        valid: As for `attention_weights`; a row without a valid key gives zeros.
        num_heads: Divides `width`.
    """
    batch, tokens, _, width = qkv.shape
    value = qkv[:, :, 2].reshape(batch, tokens, num_heads, width // num_heads)
    weights = attention_weights(qkv, valid, num_heads).astype(qkv.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(batch, tokens, width)


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
    # As one matrix: on CPUs a gradient that contracts batch and tokens apart takes half as long again.
    rows = x.reshape(-1, x.shape[2])
    logits = logits_of(rows, kernel.astype(x.dtype), bias)
    # A sum, as gathering a logit of each row has a scatter for gradient, which TPUs are slow at.
    is_true = jnp.arange(logits.shape[1], dtype=ids.dtype)[None] == ids.reshape(-1)[:, None]
    surprise = jax.nn.logsumexp(logits, axis=1) - jnp.where(is_true, logits, jnp.zeros_like(logits)).sum(
        axis=1
    )
    is_right = jnp.argmax(logits, axis=1).astype(ids.dtype) == ids.reshape(-1)
    return mean_by_row(surprise.reshape(ids.shape), is_right.reshape(ids.shape), counts)


def logits_of(
    x: Float[Array, "tokens width"], kernel: Float[Array, "width vocab"], bias: Float[Array, " vocab"]
) -> Float[Array, "tokens vocab"]:
    """Computes x @ kernel + bias, in float32 or wider."""
    wide = np.promote_types(x.dtype, np.float32)
    return jnp.dot(x, kernel, preferred_element_type=wide) + bias.astype(wide)[None]


def mean_by_row(
    surprise: Float[Array, "batch tokens"],
    is_right: Bool[Array, "batch tokens"],
    counts: Bool[Array, "batch tokens"],
) -> CrossEntropy:
    """Averages what each token says over the tokens of its row that count."""
    count = counts.sum(axis=1, dtype=jnp.int32)
    divisor = jnp.maximum(count, 1).astype(surprise.dtype)
    return CrossEntropy(
        loss=jnp.where(counts, surprise, jnp.zeros((), surprise.dtype)).sum(axis=1) / divisor,
        accuracy=(is_right & counts).sum(axis=1).astype(surprise.dtype) / divisor,
        count=count,
    )
