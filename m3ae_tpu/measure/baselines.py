"""What the kernels are compared with: other implementations, from and to the same arrays as ours.

What they need around them belongs to them: a split into heads, transposes, padding.
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
    """Of `inputs`: the output, or the loss."""
    inputs: list[Shaped]
    differentiated: tuple[int, ...]
    """Which inputs have gradients."""


def attention_baseline(name: str, shape: AttentionShape, batch: int, *, masked: bool) -> Baseline:
    """Returns multi-head attention in bfloat16, from the packed projection to the attention's
    output.

    Args:
        name: "ours" or one of `AGAINST["attention"]`.
        shape: Of a row.
        batch: Rows.
        masked: Take as second input which tokens are valid keys.

    Raises:
        ModuleNotFoundError: tokamax is not installed.
    """

    def forward(qkv: Array, valid: Array | None = None) -> Array:
        return _ATTENTION[name](qkv, valid, shape.num_heads)

    qkv = jax.ShapeDtypeStruct((batch, shape.tokens, 3 * shape.width), jnp.bfloat16)
    valid = jax.ShapeDtypeStruct((batch, shape.tokens), jnp.bool)
    return Baseline(forward, [qkv, valid] if masked else [qkv], (0,))


def cross_entropy_baseline(name: str, shape: CrossEntropyShape, batch: int) -> Baseline:
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
    return Baseline(_CROSS_ENTROPY[name], inputs, (0, 1, 2))


def _split(qkv: Float[Array, "batch tokens three_width"], num_heads: int) -> list[Array]:
    """Queries, keys and values apart: [batch, tokens, heads, head_dim] each."""
    batch, tokens, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    parts = (qkv[:, :, i * width : (i + 1) * width] for i in range(3))
    return [part.reshape(batch, tokens, num_heads, width // num_heads) for part in parts]


def _joined(out: Float[Array, "batch tokens heads head_dim"]) -> Array:
    return out.reshape(*out.shape[:2], -1)


def _mask(valid: Array | None) -> Array | None:
    return None if valid is None else valid[:, None, None, :]


def _xla(qkv: Array, valid: Array | None, num_heads: int) -> Array:
    parts = _split(qkv, num_heads)
    return _joined(jax.nn.dot_product_attention(*parts, mask=_mask(valid), implementation="xla"))


def _cudnn(qkv: Array, valid: Array | None, num_heads: int) -> Array:
    return attention(qkv, valid, num_heads, implementation="gpu")


def _padded_heads(qkv: Array, num_heads: int) -> list[Array]:
    """Queries, keys and values [batch, heads, padded tokens, head_dim], as the flash kernels want
    them.
    """
    tokens = qkv.shape[1]
    padding = ((0, 0), (0, 0), (0, -tokens % 128), (0, 0))
    return [jnp.pad(part.transpose(0, 2, 1, 3), padding) for part in _split(qkv, num_heads)]


def _segments(qkv: Array, valid: Array | None) -> Array:
    """Numbers valid tokens 0, others and padding 1, [batch, padded tokens]: neither looks at the
    other.
    """
    batch, tokens = qkv.shape[:2]
    is_other = (
        jnp.zeros((batch, tokens), jnp.int32) if valid is None else 1 - valid.astype(jnp.int32)
    )
    return jnp.pad(is_other, ((0, 0), (0, -tokens % 128)), constant_values=1)


def _flash(qkv: Array, valid: Array | None, num_heads: int) -> Array:
    from jax.experimental.pallas.ops.tpu import flash_attention as flash

    query, key, value = _padded_heads(qkv, num_heads)
    padded, head_dim = query.shape[2:]
    # Whole rows at a time: the fewest programs, and quicker than its defaults of 128.
    block = dict.fromkeys(flash.BlockSizes.__dataclass_fields__, padded) | {"block_b": 1}
    segments = _segments(qkv, valid)
    out = flash.flash_attention(
        query,
        key,
        value,
        segment_ids=flash.SegmentIds(segments, segments),
        sm_scale=head_dim**-0.5,
        block_sizes=flash.BlockSizes(**block),
    )
    return _joined(out[:, :, : qkv.shape[1]].transpose(0, 2, 1, 3))


def _splash(qkv: Array, valid: Array | None, num_heads: int) -> Array:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    query, key, value = _padded_heads(qkv, num_heads)
    padded, head_dim = query.shape[2:]
    mask = splash.MultiHeadMask([splash.FullMask((padded, padded))] * num_heads)
    fields = [
        field for field in splash.BlockSizes.__dataclass_fields__ if field.startswith("block")
    ]
    sizes = splash.BlockSizes(**cast(dict[str, Any], dict.fromkeys(fields, padded)))
    kernel = splash.make_splash_mha(mask, block_sizes=sizes, head_shards=1, q_seq_shards=1)
    segments = splash.SegmentIds(*[_segments(qkv, valid)] * 2)
    scaled = query * jnp.asarray(head_dim**-0.5, query.dtype)
    out = jnp.asarray(jax.vmap(kernel)(scaled, key, value, segments))
    return _joined(out[:, :, : qkv.shape[1]].transpose(0, 2, 1, 3))


def _tokamax(qkv: Array, valid: Array | None, num_heads: int) -> Array:
    import tokamax  # pyright: ignore[reportMissingImports]

    if jax.default_backend() == "gpu":
        return _joined(tokamax.dot_product_attention(*_split(qkv, num_heads), mask=_mask(valid)))
    # Its TPU kernel takes whole tiles of 128 tokens. cross_compile: the TPU may be described, not
    # here.
    padding = ((0, 0), (0, -qkv.shape[1] % 128), (0, 0), (0, 0))
    parts = [jnp.pad(part, padding) for part in _split(qkv, num_heads)]
    batch, padded = parts[0].shape[:2]
    is_key = _segments(qkv, valid)[:, None, None, :] == 0
    mask = jnp.broadcast_to(is_key, (batch, 1, padded, padded))
    with tokamax.config.cross_compile(True):
        out = tokamax.dot_product_attention(*parts, mask=mask, implementation="mosaic_tpu")
    return _joined(out[:, : qkv.shape[1]])


def _tokamax_loss(x: Array, kernel: Array, bias: Array, ids: Array) -> Array:
    """It knows no bias: without one it is given less to do than the others."""
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


def _ours(qkv: Array, valid: Array | None, num_heads: int) -> Array:
    return attention(qkv, valid, num_heads)


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
