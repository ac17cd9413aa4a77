"""Baselines of the kernels: other implementations, with the same inputs and outputs as ours.

A baseline includes the splits into heads, transposes and padding that it needs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from m3ae_tpu.kernels.attention import attention
from m3ae_tpu.kernels.attention.shapes import AttentionShape
from m3ae_tpu.kernels.cross_entropy import cross_entropy, reference
from m3ae_tpu.kernels.cross_entropy.shapes import CrossEntropyShape

type Shaped = jax.ShapeDtypeStruct


class Baseline(NamedTuple):
    """One implementation of an operation for one shape and batch."""

    forward: Callable
    """Maps `inputs` to the output, or to the loss."""
    inputs: list[Shaped]
    differentiated: tuple[int, ...]
    """Indices of the inputs that have gradients."""


def attention_baseline(
    name: str, shape: AttentionShape, batch: int, *, is_masked: bool
) -> Baseline:
    """Returns multi-head attention in bfloat16, from the packed projection to the attention's
    output.

    Args:
        name: "ours" or one of `AGAINST["attention"]`.
        shape: Shape of a row.
        batch: Rows.
        is_masked: Take the mask of valid keys as second input.

    Raises:
        ModuleNotFoundError: tokamax is not installed.
    """

    def forward(qkv: Array, is_valid: Array | None = None) -> Array:
        return _ATTENTION[name](qkv, is_valid, shape.num_heads)

    qkv = jax.ShapeDtypeStruct((batch, shape.tokens, 3 * shape.width), jnp.bfloat16)
    is_valid = jax.ShapeDtypeStruct((batch, shape.tokens), jnp.bool)
    return Baseline(forward, [qkv, is_valid] if is_masked else [qkv], (0,))


def cross_entropy_baseline(name: str, shape: CrossEntropyShape, batch: int) -> Baseline:
    """Returns projection and cross-entropy in bfloat16, parameters in float32, of all tokens.

    Args:
        name: "ours" or one of `AGAINST["cross_entropy"]`.
        shape: Shape of a row.
        batch: Rows.

    Raises:
        ModuleNotFoundError: tokamax is not installed.
    """
    inputs = [
        jax.ShapeDtypeStruct((batch, shape.tokens, shape.width), jnp.bfloat16),
        jax.ShapeDtypeStruct((shape.width, shape.vocab), jnp.float32),
        jax.ShapeDtypeStruct((shape.vocab,), jnp.float32),
        jax.ShapeDtypeStruct((batch, shape.tokens), jnp.int32),
    ]
    return Baseline(_CROSS_ENTROPY[name], inputs, (0, 1, 2))


def _split(qkv: Float[Array, "batch tokens three_width"], num_heads: int) -> list[Array]:
    """Returns queries, keys and values, each [batch, tokens, heads, head_dim]."""
    batch, tokens, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    arrays = (qkv[:, :, i * width : (i + 1) * width] for i in range(3))
    return [x.reshape(batch, tokens, num_heads, width // num_heads) for x in arrays]


def _joined(out: Float[Array, "batch tokens heads head_dim"]) -> Array:
    return out.reshape(*out.shape[:2], -1)


def _mask(is_valid: Array | None) -> Array | None:
    return None if is_valid is None else is_valid[:, None, None, :]


def _xla(qkv: Array, is_valid: Array | None, num_heads: int) -> Array:
    heads = _split(qkv, num_heads)
    mask = _mask(is_valid)
    return _joined(jax.nn.dot_product_attention(*heads, mask=mask, implementation="xla"))


def _cudnn(qkv: Array, is_valid: Array | None, num_heads: int) -> Array:
    return attention(qkv, is_valid, num_heads, implementation="cudnn")


def _hopper(qkv: Array, is_valid: Array | None, num_heads: int) -> Array:
    return attention(qkv, is_valid, num_heads, implementation="hopper")


def _padded_heads(qkv: Array, num_heads: int) -> list[Array]:
    """Returns queries, keys and values [batch, heads, padded tokens, head_dim], as flash kernels
    take them.
    """
    tokens = qkv.shape[1]
    padding = ((0, 0), (0, 0), (0, -tokens % 128), (0, 0))
    return [jnp.pad(x.transpose(0, 2, 1, 3), padding) for x in _split(qkv, num_heads)]


def _segments(qkv: Array, is_valid: Array | None) -> Array:
    """Returns segment numbers [batch, padded tokens]: 0 for valid tokens, 1 for others and padding.

    Flash kernels attend within a segment only.
    """
    batch, tokens = qkv.shape[:2]
    is_other = (
        jnp.zeros((batch, tokens), jnp.int32)
        if is_valid is None
        else 1 - is_valid.astype(jnp.int32)
    )
    return jnp.pad(is_other, ((0, 0), (0, -tokens % 128)), constant_values=1)


def _flash(qkv: Array, is_valid: Array | None, num_heads: int) -> Array:
    from jax.experimental.pallas.ops.tpu import flash_attention as flash

    query, key, value = _padded_heads(qkv, num_heads)
    padded, head_dim = query.shape[2:]
    # Blocks of whole rows: the fewest programs, and faster than its defaults of 128.
    block = dict.fromkeys(flash.BlockSizes.__dataclass_fields__, padded) | {"block_b": 1}
    segments = _segments(qkv, is_valid)
    out = flash.flash_attention(
        query,
        key,
        value,
        segment_ids=flash.SegmentIds(segments, segments),
        sm_scale=head_dim**-0.5,
        block_sizes=flash.BlockSizes(**block),
    )
    return _joined(out[:, :, : qkv.shape[1]].transpose(0, 2, 1, 3))


def _splash(qkv: Array, is_valid: Array | None, num_heads: int) -> Array:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    query, key, value = _padded_heads(qkv, num_heads)
    padded, head_dim = query.shape[2:]
    mask = splash.MultiHeadMask([splash.FullMask((padded, padded))] * num_heads)
    fields = [
        field for field in splash.BlockSizes.__dataclass_fields__ if field.startswith("block")
    ]
    sizes = splash.BlockSizes(**cast(dict[str, Any], dict.fromkeys(fields, padded)))
    kernel = splash.make_splash_mha(mask, block_sizes=sizes, head_shards=1, q_seq_shards=1)
    segments = splash.SegmentIds(*[_segments(qkv, is_valid)] * 2)
    scaled = query * jnp.asarray(head_dim**-0.5, query.dtype)
    out = jnp.asarray(jax.vmap(kernel)(scaled, key, value, segments))
    return _joined(out[:, :, : qkv.shape[1]].transpose(0, 2, 1, 3))


def _tokamax(qkv: Array, is_valid: Array | None, num_heads: int) -> Array:
    import tokamax  # pyright: ignore[reportMissingImports]

    if jax.default_backend() == "gpu":
        return _joined(tokamax.dot_product_attention(*_split(qkv, num_heads), mask=_mask(is_valid)))
    # Its TPU kernel takes whole tiles of 128 tokens. cross_compile: the TPU may be a described one.
    padding = ((0, 0), (0, -qkv.shape[1] % 128), (0, 0), (0, 0))
    heads = [jnp.pad(x, padding) for x in _split(qkv, num_heads)]
    batch, padded = heads[0].shape[:2]
    is_key = _segments(qkv, is_valid)[:, None, None, :] == 0
    mask = jnp.broadcast_to(is_key, (batch, 1, padded, padded))
    with tokamax.config.cross_compile(True):
        out = tokamax.dot_product_attention(*heads, mask=mask, implementation="mosaic_tpu")
    return _joined(out[:, : qkv.shape[1]])


def _tokamax_loss(x: Array, kernel: Array, bias: Array, ids: Array) -> Array:
    """Computes tokamax's loss, without the bias, which it does not support: less work than ours."""
    import tokamax  # pyright: ignore[reportMissingImports]

    rows, kernel = x.reshape(-1, x.shape[2]), kernel.astype(x.dtype)
    with tokamax.config.cross_compile(jax.default_backend() == "cpu"):
        return tokamax.linear_softmax_cross_entropy_loss(
            rows, ids.reshape(-1), kernel, reduction="mean"
        )


def _loss(function: Callable) -> Callable:
    def loss(x: Array, kernel: Array, bias: Array, ids: Array) -> Array:
        return function(x, kernel, bias, ids, jnp.ones(ids.shape, jnp.bool)).loss.mean()

    return loss


def _ours(qkv: Array, is_valid: Array | None, num_heads: int) -> Array:
    return attention(qkv, is_valid, num_heads)


_ATTENTION = {
    "ours": _ours,
    "xla": _xla,
    "flash": _flash,
    "splash": _splash,
    "tokamax": _tokamax,
    "cudnn": _cudnn,
    "hopper": _hopper,
}
_CROSS_ENTROPY = {
    "ours": _loss(cross_entropy),
    "xla": _loss(reference.cross_entropy),
    "tokamax": _tokamax_loss,
}
AGAINST = {"attention": list(_ATTENTION)[1:], "cross_entropy": list(_CROSS_ENTROPY)[1:]}
"""Baselines of each operation; cudnn and hopper need a GPU, flash and splash a TPU."""
