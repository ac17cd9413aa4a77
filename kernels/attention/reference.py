"""Attention in plain jax.numpy: the truth in tests, and the fallback where no kernel applies."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float


def attention_weights(
    qkv: Float[Array, "batch tokens 3 width"],
    is_valid: Bool[Array, "batch tokens"] | None,
    num_heads: int,
) -> Float[Array, "batch heads tokens tokens"]:
    """Computes softmax(query keyᵀ / √head_dim) over the valid keys, in float32 or wider.

    Args:
        qkv: Queries, keys and values, packed; head h owns the channels `h * head_dim` to
            `(h + 1) * head_dim` of each.
        is_valid: True for tokens that may be attended to; None: all. The weight of any other key is
            exactly 0; a row without a valid key has only zeros.
        num_heads: Divides `width`.
    """
    batch, tokens, _, width = qkv.shape
    heads = qkv.reshape(batch, tokens, 3, num_heads, width // num_heads)
    query, key = heads[:, :, 0], heads[:, :, 1]
    wide = np.promote_types(qkv.dtype, np.float32)
    logits = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=wide)
    logits = logits * (width // num_heads) ** -0.5
    if is_valid is None:
        return jax.nn.softmax(logits, axis=-1)
    is_key = is_valid[:, None, None, :]
    # Finite, not -inf: a row without a valid key then has no NaN, neither here nor in gradients.
    logits = jnp.where(is_key, logits, jnp.finfo(wide).min)
    return jnp.where(is_key, jax.nn.softmax(logits, axis=-1), jnp.zeros((), wide))


def attention(
    qkv: Float[Array, "batch tokens 3 width"],
    is_valid: Bool[Array, "batch tokens"] | None,
    num_heads: int,
) -> Float[Array, "batch tokens width"]:
    """Computes multi-head attention of packed queries, keys and values.

    Holds all `[batch, heads, tokens, tokens]` weights at once. The output has the input's dtype.
    Invalid tokens have outputs too (they attend to the valid ones); ignore them.

    Args:
        qkv: As for `attention_weights`.
        is_valid: As for `attention_weights`; a row without a valid key gives zeros.
        num_heads: Divides `width`.
    """
    batch, tokens, _, width = qkv.shape
    value = qkv[:, :, 2].reshape(batch, tokens, num_heads, width // num_heads)
    weights = attention_weights(qkv, is_valid, num_heads).astype(qkv.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(batch, tokens, width)
