"""The odd queries of a TPU attention kernel, as a class token's: the last few of every head, taken
together.

A tile of their own would cost a head as much as 128 queries do. Here they are rows, all keys beside
one another, and the keys are what the matrix units hold: a pass for all heads of a group.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .operands import LOWEST, Group, Job, add_up, dot, split
from .tiling import LANES, PACKED_ROWS


def odd_output(group: Group, qkv_ref, out_ref) -> Job:
    """Writes the odd queries' output."""
    scores = _products(group, _rows(group, qkv_ref, 0), qkv_ref, 1)
    yield
    weights, inverse = _softmax(group, scores)
    yield
    out = _combine(group, weights, qkv_ref, 2) * inverse
    _write(group, out, out_ref, 0)


def odd_gradients(
    group: Group, qkv_ref, dout_ref, dqkv_ref, add: Callable[[int, int, slice, Array], None]
) -> Job:
    """Writes the gradient of the odd queries; adds what they give to those of keys and values
    [head_dim, keys].
    """
    cut = group.cut
    scores = _products(group, _rows(group, qkv_ref, 0), qkv_ref, 1)
    dweights = _products(group, _rows(group, dout_ref, 0), qkv_ref, 2)
    yield
    weights, inverse = _softmax(group, scores)
    weights = weights * inverse
    yield
    dscores = weights * (dweights - jnp.sum(weights * dweights, 1, keepdims=True))
    yield
    dquery = add_up(_combine(group, part, qkv_ref, 1) for part in split(dscores, qkv_ref.dtype))
    _write(group, dquery * cut.scale, dqkv_ref, 0)
    for part, ref, x in ((1, qkv_ref, dscores), (2, dout_ref, weights)):
        columns = _columns(group, ref)
        for head in range(cut.heads):
            own = cut.channels(slice(head, head + 1))
            for keys in cut.key_tiles:
                add(
                    part,
                    head,
                    keys,
                    add_up(
                        column[own, : keys.stop - keys.start] * x[head * cut.odd + n][None, keys]
                        for n, column in enumerate(columns)
                    ),
                )


def _tokens(group: Group) -> slice:
    return slice(group.cut.tokens - group.cut.odd, group.cut.tokens)


def _is_own(group: Group, head: int) -> Array:
    """Which of the group's channels are the head's [1, group_width]."""
    own = group.cut.channels(slice(head, head + 1))
    lane = jax.lax.broadcasted_iota(jnp.int32, (1, group.cut.group_width), 1)
    return (lane >= own.start) & (lane < own.stop)


def _load(group: Group, ref) -> Array:
    return ref[group.row, _tokens(group), group.lanes(0)].astype(jnp.float32)


def _rows(group: Group, ref, part: int) -> Array:
    """The odd queries of one head after the other, zero in the channels of others; as many rows as
    a pass takes.
    """
    cut = group.cut
    x = jnp.concatenate([_load(group, ref)] * -(-PACKED_ROWS // cut.odd), 0)[:PACKED_ROWS]
    row, lane = (
        jax.lax.broadcasted_iota(jnp.int32, x.shape, axis).astype(jnp.float32) for axis in (0, 1)
    )
    channel = lane - jnp.floor((row + 0.5) / cut.odd) * cut.head_dim
    # Arithmetic: the compiler makes of a selection a mask that its product has no packed form of.
    keep = jnp.clip(channel + 1, 0, 1) * jnp.clip(cut.head_dim - channel, 0, 1)
    return (x * keep).astype(ref.dtype)


def _columns(group: Group, ref) -> list[Array]:
    """Each odd query as a column, in every lane [group_width, lanes]."""
    x = _load(group, ref)
    lanes = max(keys.stop - keys.start for keys in group.cut.key_tiles)
    return [jnp.broadcast_to(x[n : n + 1], (lanes, x.shape[1])).T for n in range(group.cut.odd)]


def _key_tiles(group: Group, ref, part: int) -> list[Array]:
    """Keys, or values, in tiles of whole lane tiles, zero past the last: the compiler masks no
    packed operand.
    """

    def tile(keys: slice) -> Array:
        x = ref[group.row, keys, group.lanes(part)]
        missing = -x.shape[0] % LANES
        return (
            jnp.pad(x.astype(jnp.float32), ((0, missing), (0, 0))).astype(x.dtype) if missing else x
        )

    return [tile(keys) for keys in group.cut.key_tiles]


def _products(group: Group, rows: Array, ref, part: int) -> Array:
    """Products with all keys, or values [heads * odd, padded tokens]."""
    return jnp.concatenate([dot(rows, tile, (1, 1)) for tile in _key_tiles(group, ref, part)], 1)


def _softmax(group: Group, scores: Array) -> tuple[Array, Array]:
    """Weights, and what to multiply them with to make them sum to 1 (0 where no key is valid)."""
    tokens, padded = group.cut.tokens, scores.shape[1]
    if group.bias_ref is not None:
        scores = scores + jnp.pad(group.bias_ref[group.row], ((0, 0), (0, padded - tokens)))
    lane = jax.lax.broadcasted_iota(jnp.int32, (1, padded), 1)
    scores = jnp.where(lane < tokens, scores, -jnp.inf)
    largest = jnp.maximum(jnp.max(scores, 1, keepdims=True), LOWEST)
    weights = group.weights(scores, largest)
    total = jnp.sum(weights, 1, keepdims=True)
    return weights, jnp.where(total > 0, 1 / jnp.where(total > 0, total, 1.0), 0.0)


def _combine(group: Group, weights: Array, ref, part: int) -> Array:
    """Sums of values, or keys, by weight [heads * odd, group_width]."""
    tiles = _key_tiles(group, ref, part)
    starts = [keys.start for keys in group.cut.key_tiles]
    return add_up(
        dot(weights[:, start : start + tile.shape[0]].astype(ref.dtype), tile, (1, 0))
        for start, tile in zip(starts, tiles, strict=True)
    )


def _write(group: Group, x: Array, ref, part: int) -> None:
    """Keeps of each head's rows its own channels."""
    odd = group.cut.odd
    heads = [
        jnp.where(_is_own(group, h), x[h * odd : (h + 1) * odd], 0.0)
        for h in range(group.cut.heads)
    ]
    ref[group.row, _tokens(group), group.lanes(part)] = add_up(heads).astype(ref.dtype)
