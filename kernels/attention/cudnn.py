"""Attention of packed queries, keys and values on NVIDIA GPUs: cuDNN's kernels, called through
JAX.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

MAX_FASTEST_TOKENS = 1024
"""Tokens of a row up to which `implementation="auto"` prefers cuDNN to XLA on an NVIDIA GPU.

Time of forward and backward pass as a share of XLA's, bfloat16, 256 rows, NVIDIA H100 80GB HBM3,
JAX 0.11.2, 2026-11-27: 0.65 (with a mask 0.69) for 81 tokens and 12 heads of 64; 0.24 (0.31) for
321 tokens and 16 heads of 32. tokamax: 0.71 and 0.30. Other GPUs were not measured and do as this
one does.
"""
_MAX_HEAD_DIM = 128


def is_here() -> bool:
    """Returns whether JAX's default backend is an NVIDIA GPU."""
    return jax.default_backend() == "gpu" and "cuda" in jax.devices()[0].client.platform_version


def unsupported_reason(dtype: jnp.dtype, head_dim: int) -> str | None:
    """Returns why cuDNN cannot compute heads of this dtype and width here, or None if it can."""
    if not is_here():
        return "no NVIDIA GPU is here"
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"dtype = {dtype} is neither bfloat16 nor float16"
    if head_dim % 8 or head_dim > _MAX_HEAD_DIM:
        return f"a head's width of {head_dim} is not a multiple of 8 up to {_MAX_HEAD_DIM}"
    return None


def attention(
    qkv: Float[Array, "batch tokens 3 width"],
    is_valid: Bool[Array, "batch tokens"] | None,
    num_heads: int,
) -> Float[Array, "batch tokens width"]:
    """Computes `reference.attention`; `unsupported_reason` must be None for the inputs."""
    batch, tokens, _, width = qkv.shape
    # JAX refuses gradients through cuDNN for odd token counts: pad by one token, which is masked.
    padding = tokens % 2
    qkv = jnp.pad(qkv, ((0, 0), (0, padding), (0, 0), (0, 0)))
    query, key, value = jnp.unstack(
        qkv.reshape(*qkv.shape[:3], num_heads, width // num_heads), axis=2
    )
    mask = lengths = None
    if is_valid is not None:
        is_key = jnp.pad(is_valid, ((0, 0), (0, padding)))[:, None, None, :]
        mask = jnp.broadcast_to(is_key, (batch, 1, tokens + padding, tokens + padding))
    elif padding:
        lengths = jnp.full((batch,), tokens, jnp.int32)
    out = jax.nn.dot_product_attention(
        query, key, value, mask=mask, key_value_seq_lengths=lengths, implementation="cudnn"
    )
    out = out[:, :tokens].reshape(batch, tokens, width)
    # cuDNN gives all keys of a row without a valid key the same weight.
    return out if is_valid is None else jnp.where(is_valid.any(axis=1)[:, None, None], out, 0)
