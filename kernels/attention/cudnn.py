"""Attention of queries, keys and values on NVIDIA GPUs: cuDNN's kernels, called through
JAX.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax._src.cudnn import fused_attention_stablehlo as stablehlo
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


def unsupported_reason(
    dtype: jnp.dtype, head_dim: int, device_kind: str | None = None
) -> str | None:
    """Returns why cuDNN cannot compute heads of this dtype and width, or None if it can.

    Args:
        dtype: Dtype of the queries, keys and values.
        head_dim: Width of a head.
        device_kind: `device_kind` of the devices that the program is for; None: those here.
    """
    if not (is_here() if device_kind is None else device_kind.startswith("NVIDIA")):
        return "no NVIDIA GPU is here"
    if dtype not in (jnp.bfloat16, jnp.float16):
        return f"dtype = {dtype} is neither bfloat16 nor float16"
    if head_dim % 8 or head_dim > _MAX_HEAD_DIM:
        return f"a head's width of {head_dim} is not a multiple of 8 up to {_MAX_HEAD_DIM}"
    return None


def attention(
    query: Float[Array, "batch tokens width"],
    key: Float[Array, "batch tokens width"],
    value: Float[Array, "batch tokens width"],
    is_valid: Bool[Array, "batch tokens"] | None,
    num_heads: int,
) -> Float[Array, "batch tokens width"]:
    """Computes `reference.attention`; `unsupported_reason` must be None for the inputs."""
    batch, tokens, width = query.shape
    # cuDNN takes a bias, as which it gets the mask, for even token counts only: pad by one token,
    # which is masked.
    padding = 0 if is_valid is None else tokens % 2
    shape = batch, tokens + padding, num_heads, width // num_heads
    query, key, value = (
        (jnp.pad(x, ((0, 0), (0, padding), (0, 0))) if padding else x).reshape(shape)
        for x in (query, key, value)
    )
    bias = None
    if is_valid is not None:
        is_key = jnp.pad(is_valid, ((0, 0), (0, padding)))[:, None, None, :]
        lowest = jnp.asarray(0.7 * jnp.finfo(query.dtype).min, query.dtype)
        bias = jnp.where(is_key, jnp.zeros((), query.dtype), lowest)
        bias = jnp.broadcast_to(bias, (batch, 1, tokens + padding, tokens + padding))
    out = _attention(query, key, value, bias)[:, :tokens].reshape(batch, tokens, width)
    # cuDNN gives all keys of a row without a valid key the same weight.
    return out if is_valid is None else jnp.where(is_valid.any(axis=1)[:, None, None], out, 0)


@jax.custom_vjp
def _attention(query: Array, key: Array, value: Array, bias: Array | None) -> Array:
    """Computes attention of [batch, tokens, heads, head_dim] with a bias of logits.

    `jax.nn.dot_product_attention` does the same, but refuses the gradient of odd token counts even
    without a bias, and asks the GPU of this machine for its kind, where a program may be for
    another one.
    """
    out, *_ = stablehlo._dot_product_attention_fwd_p_wrapper.bind(
        query, key, value, *_options(query, bias), **_settings(query, bias), is_training=False
    )
    return out


def _attention_forward(query, key, value, bias):
    out, statistics = stablehlo._dot_product_attention_fwd_p_wrapper.bind(
        query, key, value, *_options(query, bias), **_settings(query, bias), is_training=True
    )
    return out, (query, key, value, bias, statistics, out)


def _attention_backward(saved, dout):
    query, key, value, bias, statistics, out = saved
    dquery, dkey, dvalue, *_ = stablehlo._dot_product_attention_bwd_p_wrapper.bind(
        query,
        key,
        value,
        *_options(query, bias),
        statistics,
        out,
        dout,
        **_settings(query, bias),
    )
    return dquery, dkey, dvalue, None if bias is None else jnp.zeros_like(bias)


_attention.defvjp(_attention_forward, _attention_backward)


def _options(query: Array, bias: Array | None) -> tuple[Array, ...]:
    """Returns the bias, and nothing for lengths, offsets and page tables of rows."""
    nothing = jnp.zeros(0, query.dtype)
    return (nothing if bias is None else bias, *[nothing] * 6)


def _settings(query: Array, bias: Array | None) -> dict[str, Any]:
    return {
        "scale": query.shape[-1] ** -0.5,
        "seed": 0,
        "dropout_rate": 0.0,
        "variadic_args": (bias is not None, False),  # A bias, and its gradient.
        "mask_type": stablehlo.MaskType.NO_MASK,
        "layout": stablehlo.AttentionLayout.BTNH.value,
        "sliding_window_length": None,
    }
