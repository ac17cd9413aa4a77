"""Attention in plain jax.numpy: the truth in tests, and what runs where no kernel does."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float


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
    # A finite substitute for -inf keeps rows without a valid key free of NaN, also in gradients.
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
