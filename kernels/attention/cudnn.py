"""Attention of packed queries, keys and values on NVIDIA GPUs: cuDNN's kernels, by way of JAX."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

_MAX_HEAD_DIM = 128


def unsupported_reason(dtype: jnp.dtype, head_dim: int) -> str | None:
    """Returns why cuDNN does not take heads of this dtype and width here, or None if it does."""
    if jax.default_backend() != "gpu" or "cuda" not in jax.devices()[0].client.platform_version:
        return "no NVIDIA GPU is here"
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"dtype = {dtype} is neither bfloat16 nor float16"
    if head_dim % 8 or head_dim > _MAX_HEAD_DIM:
        return f"a head's width of {head_dim} is no multiple of 8 up to {_MAX_HEAD_DIM}"
    return None


def attention(
    qkv: Float[Array, "batch tokens 3 width"],
    valid: Bool[Array, "batch tokens"] | None,
    num_heads: int,
) -> Float[Array, "batch tokens width"]:
    """Computes what `reference.attention` does, for shapes that `unsupported_reason` has no
    objection to.
    """
    batch, tokens, _, width = qkv.shape
    # For its gradient JAX lets only even counts through to cuDNN.
    odd = tokens % 2
    qkv = jnp.pad(qkv, ((0, 0), (0, odd), (0, 0), (0, 0)))
    query, key, value = jnp.unstack(
        qkv.reshape(*qkv.shape[:3], num_heads, width // num_heads), axis=2
    )
    mask = lengths = None
    if valid is not None:
        keys = jnp.pad(valid, ((0, 0), (0, odd)))[:, None, None, :]
        mask = jnp.broadcast_to(keys, (batch, 1, tokens + odd, tokens + odd))
    elif odd:
        lengths = jnp.full((batch,), tokens, jnp.int32)
    out = jax.nn.dot_product_attention(
        query, key, value, mask=mask, key_value_seq_lengths=lengths, implementation="cudnn"
    )
    out = out[:, :tokens].reshape(batch, tokens, width)
    # cuDNN spreads the weight of a row without a valid key evenly.
    return out if valid is None else jnp.where(valid.any(axis=1)[:, None, None], out, 0)
