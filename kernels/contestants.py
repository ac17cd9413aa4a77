"""What the kernels are compared with: other implementations, from and to the same arrays as ours.

What they need around them belongs to them: a split into heads, transposes, padding.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from . import reference
from .attention import attention
from .cross_entropy import cross_entropy
from .shapes import AttentionShape, CrossEntropyShape

type Shaped = jax.ShapeDtypeStruct


class Contestant(NamedTuple):
    """One implementation of an operation for one shape and batch."""

    forward: Callable
    """Of `inputs`: the output, or the loss."""
    inputs: list[Shaped]
    differentiated: tuple[int, ...]
    """Which inputs have gradients."""


def attention_contestant(name: str, shape: AttentionShape, batch: int) -> Contestant:
    """Returns multi-head attention in bfloat16, from the packed projection to the attention's output.

    Args:
        name: "ours" or one of `AGAINST["attention"]`.
        shape: Of a row.
        batch: Rows.

    Raises:
        ModuleNotFoundError: tokamax is not installed.
    """
    forward = functools.partial(_ATTENTION[name], num_heads=shape.num_heads)
    qkv = jax.ShapeDtypeStruct((batch, shape.tokens, 3 * shape.width), jnp.bfloat16)
    return Contestant(forward, [qkv], (0,))


def cross_entropy_contestant(name: str, shape: CrossEntropyShape, batch: int) -> Contestant:
    """Returns projection and cross-entropy in bfloat16, parameters in float32; every token counts.

    Args:
        name: "ours" or one of `AGAINST["cross_entropy"]`.
        shape: Of a row.
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
    return Contestant(_CROSS_ENTROPY[name], inputs, (0, 1, 2))


def _split(qkv: Float[Array, "batch tokens three_width"], num_heads: int) -> list[Array]:
    """Queries, keys and values apart: [batch, tokens, heads, head_dim] each."""
    batch, tokens, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    parts = (qkv[:, :, i * width : (i + 1) * width] for i in range(3))
    return [part.reshape(batch, tokens, num_heads, width // num_heads) for part in parts]


def _joined(out: Float[Array, "batch tokens heads head_dim"]) -> Array:
    return out.reshape(*out.shape[:2], -1)


def _xla(qkv: Array, *, num_heads: int) -> Array:
    return _joined(jax.nn.dot_product_attention(*_split(qkv, num_heads), implementation="xla"))


def _cudnn(qkv: Array, *, num_heads: int) -> Array:
    return _joined(jax.nn.dot_product_attention(*_split(qkv, num_heads), implementation="cudnn"))


def _padded_heads(qkv: Array, num_heads: int) -> list[Array]:
    """Queries, keys and values [batch, heads, padded tokens, head_dim], as the flash kernels want them."""
    tokens = qkv.shape[1]
    padding = ((0, 0), (0, 0), (0, -tokens % 128), (0, 0))
    return [jnp.pad(part.transpose(0, 2, 1, 3), padding) for part in _split(qkv, num_heads)]


def _segments(padded: int, tokens: int) -> Array:
    """Numbers real tokens 0 and padding 1: neither looks at the other."""
    return (jnp.arange(padded) >= tokens).astype(jnp.int32)


def _flash(qkv: Array, *, num_heads: int) -> Array:
    from jax.experimental.pallas.ops.tpu import flash_attention as flash

    batch, tokens = qkv.shape[:2]
    query, key, value = _padded_heads(qkv, num_heads)
    padded, head_dim = query.shape[2:]
    # Whole rows at a time: the fewest programs, and quicker than its defaults of 128.
    block = dict.fromkeys(flash.BlockSizes.__dataclass_fields__, padded) | {"block_b": 1}
    segments = jnp.broadcast_to(_segments(padded, tokens), (batch, padded))
    out = flash.flash_attention(
        query,
        key,
        value,
        segment_ids=flash.SegmentIds(segments, segments),
        sm_scale=head_dim**-0.5,
        block_sizes=flash.BlockSizes(**block),
    )
    return _joined(out[:, :, :tokens].transpose(0, 2, 1, 3))


def _splash(qkv: Array, *, num_heads: int) -> Array:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    tokens = qkv.shape[1]
    query, key, value = _padded_heads(qkv, num_heads)
    padded, head_dim = query.shape[2:]
    mask = splash.MultiHeadMask([splash.FullMask((padded, padded))] * num_heads)
    fields = [field for field in splash.BlockSizes.__dataclass_fields__ if field.startswith("block")]
    sizes = splash.BlockSizes(**cast(dict[str, Any], dict.fromkeys(fields, padded)))
    kernel = splash.make_splash_mha(mask, block_sizes=sizes, head_shards=1, q_seq_shards=1)
    segments = splash.SegmentIds(*[_segments(padded, tokens)] * 2)
    scaled = query * jnp.asarray(head_dim**-0.5, query.dtype)
    out = jnp.asarray(jax.vmap(kernel, in_axes=(0, 0, 0, None))(scaled, key, value, segments))
    return _joined(out[:, :, :tokens].transpose(0, 2, 1, 3))


def _tokamax(qkv: Array, *, num_heads: int) -> Array:
    import tokamax  # pyright: ignore[reportMissingImports]

    implementation = "mosaic_tpu" if jax.default_backend() in ("cpu", "tpu") else None
    out = tokamax.dot_product_attention(*_split(qkv, num_heads), implementation=implementation)
    return _joined(out)


def _tokamax_loss(x: Array, kernel: Array, bias: Array, ids: Array) -> Array:
    """It knows no bias: without one it is given less to do than the others."""
    import tokamax  # pyright: ignore[reportMissingImports]

    rows, kernel = x.reshape(-1, x.shape[2]), kernel.astype(x.dtype)
    return tokamax.linear_softmax_cross_entropy_loss(rows, ids.reshape(-1), kernel, reduction="mean")


def _loss(function: Callable) -> Callable:
    def loss(x: Array, kernel: Array, bias: Array, ids: Array) -> Array:
        return function(x, kernel, bias, ids, jnp.ones(ids.shape, jnp.bool)).loss.mean()

    return loss


def _ours(qkv: Array, *, num_heads: int) -> Array:
    return attention(qkv, None, num_heads)


_ATTENTION = {
    "ours": _ours,
    "xla": _xla,
    "flash": _flash,
    "splash": _splash,
    "tokamax": _tokamax,
    "cudnn": _cudnn,
}
_CROSS_ENTROPY = {
    "ours": _loss(cross_entropy),
    "xla": _loss(reference.cross_entropy),
    "tokamax": _tokamax_loss,
}
AGAINST = {"attention": list(_ATTENTION)[1:], "cross_entropy": list(_CROSS_ENTROPY)[1:]}
"""Whom each operation can be compared with; cudnn needs a GPU, flash and splash a TPU."""
