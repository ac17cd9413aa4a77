"""Tail of the queries, such as a class token's: the last few of every head, computed together.

As a query tile of their own they would cost each head as much as 64 queries. Here the queries of
all heads of a group are rows of one operand and the matrix units hold the keys: one pass for all.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .operands import KEY, LOWEST, QUERY, VALUE, Group, Task, add_up, dot, split
from .tiling import LANES, PACKED_ROWS


def tail_output(group: Group, qkv_ref, out_ref) -> Task:
    """Writes the output of the tail's queries."""
    scores = _products(group, _rows(group, qkv_ref), qkv_ref, KEY)
    yield
    weights, inverse = _softmax(group, scores)
    yield
    out = _weighted_sum(group, weights, qkv_ref, VALUE) * inverse
    _write(group, out, out_ref)


def tail_gradients(
    group: Group, qkv_ref, dout_ref, dqkv_ref, add: Callable[[int, int, slice, Array], None]
) -> Task:
    """Writes the gradient of the tail's queries, and adds their terms to those of keys and values.

    `add(slot, head, keys, term)` takes terms [head_dim, keys].
    """
    tiling = group.tiling
    scores = _products(group, _rows(group, qkv_ref), qkv_ref, KEY)
    dweights = _products(group, _rows(group, dout_ref), qkv_ref, VALUE)
    yield
    weights, inverse = _softmax(group, scores)
    weights = weights * inverse
    yield
    dscores = weights * (dweights - jnp.sum(weights * dweights, 1, keepdims=True))
    yield
    dquery = add_up(
        _weighted_sum(group, term, qkv_ref, KEY) for term in split(dscores, qkv_ref.dtype)
    )
    _write(group, dquery * tiling.scale, dqkv_ref)
    for slot, ref, x in ((KEY, qkv_ref, dscores), (VALUE, dout_ref, weights)):
        columns = _columns(group, ref)
        for head in range(tiling.heads):
            own = tiling.channels(slice(head, head + 1))
            for keys in tiling.key_tiles:
                term = add_up(
                    column[own, : keys.stop - keys.start] * x[head * tiling.tail + n][None, keys]
                    for n, column in enumerate(columns)
                )
                add(slot, head, keys, term)


def _tokens(group: Group) -> slice:
    return slice(group.tiling.tokens - group.tiling.tail, group.tiling.tokens)


def _is_own(group: Group, head: int) -> Array:
    """Returns a mask of the group's channels that are the head's [1, group_width]."""
    own = group.tiling.channels(slice(head, head + 1))
    lane = jax.lax.broadcasted_iota(jnp.int32, (1, group.tiling.group_width), 1)
    return (lane >= own.start) & (lane < own.stop)


def _load(group: Group, ref) -> Array:
    return ref[group.row, _tokens(group), group.lanes(QUERY)].astype(jnp.float32)


def _rows(group: Group, ref) -> Array:
    """Returns the tail's queries, those of one head after the other, padded to one pass.

    Each row is zero in the channels of other heads.
    """
    tiling = group.tiling
    x = jnp.concatenate([_load(group, ref)] * -(-PACKED_ROWS // tiling.tail), 0)[:PACKED_ROWS]
    row, lane = (
        jax.lax.broadcasted_iota(jnp.int32, x.shape, axis).astype(jnp.float32) for axis in (0, 1)
    )
    channel = lane - jnp.floor((row + 0.5) / tiling.tail) * tiling.head_dim
    # Multiply instead of `jnp.where`: Mosaic turns the select into a mask that a packed bfloat16
    # operand cannot use.
    keep = jnp.clip(channel + 1, 0, 1) * jnp.clip(tiling.head_dim - channel, 0, 1)
    return (x * keep).astype(ref.dtype)


def _columns(group: Group, ref) -> list[Array]:
    """Returns each query of the tail as a column, repeated in all lanes [group_width, lanes]."""
    x = _load(group, ref)
    lanes = max(keys.stop - keys.start for keys in group.tiling.key_tiles)
    return [jnp.broadcast_to(x[n : n + 1], (lanes, x.shape[1])).T for n in range(group.tiling.tail)]


def _key_tiles(group: Group, ref, slot: int) -> list[Array]:
    """Returns keys, or values, in tiles padded with zeros to whole lane tiles.

    The compiler cannot mask the unused rows of a packed operand itself.
    """

    def tile(keys: slice) -> Array:
        x = ref[group.row, keys, group.lanes(slot)]
        missing = -x.shape[0] % LANES
        if not missing:
            return x
        return jnp.pad(x.astype(jnp.float32), ((0, missing), (0, 0))).astype(x.dtype)

    return [tile(keys) for keys in group.tiling.key_tiles]


def _products(group: Group, rows: Array, ref, slot: int) -> Array:
    """Multiplies rows with all keys, or values: [heads * tail, padded tokens]."""
    return jnp.concatenate([dot(rows, tile, (1, 1)) for tile in _key_tiles(group, ref, slot)], 1)


def _softmax(group: Group, scores: Array) -> tuple[Array, Array]:
    """Returns unnormalised weights and the inverse of their sum, which is 0 where no key is
    valid.
    """
    tokens, padded = group.tiling.tokens, scores.shape[1]
    if group.bias_ref is not None:
        scores = scores + jnp.pad(group.bias_ref[group.row], ((0, 0), (0, padded - tokens)))
    lane = jax.lax.broadcasted_iota(jnp.int32, (1, padded), 1)
    scores = jnp.where(lane < tokens, scores, -jnp.inf)
    row_max = jnp.maximum(jnp.max(scores, 1, keepdims=True), LOWEST)
    weights = group.weights(scores, row_max)
    row_sum = jnp.sum(weights, 1, keepdims=True)
    return weights, jnp.where(row_sum > 0, 1 / jnp.where(row_sum > 0, row_sum, 1.0), 0.0)


def _weighted_sum(group: Group, weights: Array, ref, slot: int) -> Array:
    """Sums values, or keys, by weight: [heads * tail, group_width]."""
    tiles = _key_tiles(group, ref, slot)
    starts = [keys.start for keys in group.tiling.key_tiles]
    return add_up(
        dot(weights[:, start : start + tile.shape[0]].astype(ref.dtype), tile, (1, 0))
        for start, tile in zip(starts, tiles, strict=True)
    )


def _write(group: Group, x: Array, ref) -> None:
    """Writes each head's channels of its rows to the tail's tokens."""
    tail = group.tiling.tail
    heads = [
        jnp.where(_is_own(group, h), x[h * tail : (h + 1) * tail], 0.0)
        for h in range(group.tiling.heads)
    ]
    ref[group.row, _tokens(group), group.lanes(QUERY)] = add_up(heads).astype(ref.dtype)
