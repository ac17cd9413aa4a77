"""Backward pass of the Hopper attention kernels: all gradients at once, with recomputed weights."""

import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array

from .operands import (
    LOG2_E,
    SUM_COLUMNS,
    TILE,
    added,
    copies,
    fill_with_ones,
    landing,
    landing_and_operand,
    load_columns,
    load_rows,
    load_tile,
    of_columns,
    of_rows,
    ones_scratch,
    operand,
    over_parts,
    past_end,
    products,
    start_copy,
    store,
    sums_of_rows,
    tile,
    vector,
    zeros,
)

_PART = {32: 96, 64: 64}
"""Keys or queries that a tile meets at once, by width of a head: as many as registers hold."""
_EXPONENT = 0x7F800000
"""The bits of a float32 that hold its exponent."""
_INVERSE = 0x7E000000
"""Bits from which those of a power of two are taken: the result is a quarter of its inverse."""


def scratch(rows: int, head_dim: int) -> list:
    """Returns the kernel's memory: whole operands, of float16 and of bfloat16; where tiles are
    copied; a tile of each kind of operand; one of results; ones; log-sum-exps, means, bias, a
    number of each row of a tile; barriers of whole operands, of tiles of queries, of keys, of
    vectors.
    """
    whole = [landing_and_operand(rows, head_dim, dtype) for dtype in (jnp.float16, jnp.bfloat16)]
    tiles = [operand(TILE, head_dim, dtype) for dtype in (jnp.float16, jnp.bfloat16)]
    vectors = [*[vector(rows)] * 3, vector(TILE)]
    arrivals = 2 * copies(rows), 3, 2, 2 * copies(rows)
    barriers = [plgpu.Barrier(num_arrivals=number) for number in arrivals]
    of_tiles = [*[landing(TILE, head_dim)] * 3, *tiles, landing(TILE, head_dim)]
    ones = ones_scratch(jnp.float16)
    return [*whole, *of_tiles, ones, *vectors, *barriers]


def attention_backward(*refs, head_dim: int, is_masked: bool):
    """Computes dqkv, shaped as qkv, one row and head a program.

    Tiles of queries meet all keys, for the queries' gradient; then tiles of keys meet all queries.
    Its arrays are qkv; a bias of keys [batch, rows], or [1, rows] if only padding has one; outputs
    and log2-sum-exps, as the forward kernel gives them; dout [batch, tokens, width]; dqkv; and
    those of `scratch`.
    """
    qkv, bias, out, lse, dout, dqkv, *refs = refs
    (landed_16, all_16), (landed_b, all_b), *landed, tile_16, tile_b, staged, ones = refs[:9]
    sums, means, key_bias, of_tile, whole, of_queries, of_keys, of_vectors = refs[9:]
    batch, head = lax.axis_index("batch"), lax.axis_index("heads")
    tokens, width, scale = qkv.shape[1], qkv.shape[2] // 3, LOG2_E * head_dim**-0.5
    number_of_tiles = -(-tokens // TILE)
    queries, keys, values = (qkv, 0), (qkv, 1), (qkv, 2)

    def lanes(slot: int):
        return pl.ds(slot * width + head * head_dim, head_dim)

    def start_whole(*sources) -> None:
        for (source, slot), place in zip(sources, (landed_16, landed_b), strict=True):
            start_copy(source.at[batch], 0, place, whole, lanes(slot))

    def start_tile(number, barrier, *sources) -> None:
        @pl.when(number < number_of_tiles)
        def _():
            for (source, slot), place in zip(sources, landed, strict=False):
                start_copy(source.at[batch], number * TILE, place, barrier, lanes(slot))

    def write(x: Array, slot: int, number) -> None:
        place = past_end(number * TILE, TILE)
        store(x.astype(jnp.bfloat16), staged, dqkv.at[batch, place, lanes(slot)])

    start_whole(keys, values)
    start_tile(0, of_queries, queries, (dout, 0), (out, 0))
    start_copy(lse.at[batch, head], 0, sums, of_vectors)
    start_copy(bias.at[batch if is_masked else 0], 0, key_bias, of_vectors)
    plgpu.barrier_wait(whole)

    @pl.loop(0, number_of_tiles)
    def _(number):
        rows = tile(number)
        all_16[rows] = load_tile(landed_16.at[rows]).astype(jnp.float16)
        all_b[rows] = load_tile(landed_b.at[rows])

    fill_with_ones(ones)
    plgpu.commit_smem()
    plgpu.barrier_wait(of_vectors)

    def query_tile(number, peak: Array) -> Array:
        """Writes the queries' gradient and means; returns the largest of dout so far."""
        rows = tile(number)
        plgpu.barrier_wait(of_queries)
        tile_16[...] = load_tile(landed[0]).astype(jnp.float16)
        tile_b[...] = load_tile(landed[1])
        douts = load_tile(landed[1]).astype(jnp.float32)
        outs = load_tile(landed[2]).astype(jnp.float32)
        largest = jnp.abs(douts).max(axis=1)
        enlarged = _quarter_of_inverse(largest)
        estimate = (douts * outs).sum(axis=1) * enlarged
        plgpu.commit_smem()
        start_tile(number + 1, of_queries, queries, (dout, 0), (out, 0))
        row_sums = load_rows(sums.at[rows])

        def part(first, length: int, is_last: bool, carry: tuple[Array, ...]):
            dquery, mean_key, rest = carry
            part = pl.ds(first, length)
            logits, gradient = products((tile_16, all_16.at[part].T), (tile_b, all_b.at[part].T))
            logits = logits * scale
            if is_masked or is_last:
                logits = logits + of_columns(load_columns(key_bias.at[part]))
            weights = jnp.exp2(logits - of_rows(row_sums, length))
            gradient = gradient * of_rows(enlarged, length) - of_rows(estimate, length)
            gradient = (weights * gradient).astype(jnp.float16)
            return added(
                (dquery, gradient, all_16.at[part]),
                (mean_key, weights.astype(jnp.float16), all_16.at[part]),
                sums_of_rows(rest, gradient, ones),
            )

        carry = zeros(head_dim), zeros(head_dim), zeros(SUM_COLUMNS)
        dquery, mean_key, rest = over_parts(tokens, _PART[head_dim], part, carry)
        rest = rest.max(axis=1)  # All of its columns are equal.
        reduced = _inverse(enlarged)
        means[rows] = (estimate + rest) * reduced
        dquery = dquery - of_rows(rest, head_dim) * mean_key
        write(dquery * of_rows(reduced * head_dim**-0.5, head_dim), 0, number)
        return jnp.maximum(peak, largest)

    peak = lax.fori_loop(0, number_of_tiles, query_tile, zeros(head_dim).max(axis=1))
    of_tile[...] = _quarter_of_inverse(peak)
    plgpu.commit_smem()
    start_whole(queries, (dout, 0))
    start_tile(0, of_keys, keys, values)
    enlarged = load_columns(of_tile).min()
    plgpu.barrier_wait(whole)

    @pl.loop(0, number_of_tiles)
    def _(number):
        rows = tile(number)
        all_16[rows] = load_tile(landed_16.at[rows]).astype(jnp.float16)
        all_b[rows] = load_tile(landed_b.at[rows])
        means[rows] = load_rows(means.at[rows]) * enlarged

    plgpu.commit_smem()

    @pl.loop(0, number_of_tiles)
    def _(number):
        plgpu.barrier_wait(of_keys)
        tile_16[...] = load_tile(landed[0]).astype(jnp.float16)
        tile_b[...] = load_tile(landed[1])
        plgpu.commit_smem()
        start_tile(number + 1, of_keys, keys, values)

        def part(first, length: int, _: bool, carry: tuple[Array, ...]):
            dkey, dvalue = carry
            part = pl.ds(first, length)
            logits, gradient = products((tile_16, all_16.at[part].T), (tile_b, all_b.at[part].T))
            logits = logits * scale - of_columns(load_columns(sums.at[part]))
            if is_masked:
                logits = logits + of_rows(load_rows(key_bias.at[tile(number)]), length)
            weights = jnp.exp2(logits)
            gradient = gradient * enlarged - of_columns(load_columns(means.at[part]))
            gradient = (weights * gradient).astype(jnp.float16)
            return added(
                (dkey, gradient, all_16.at[part]),
                (dvalue, weights.astype(jnp.bfloat16), all_b.at[part]),
            )

        carry = zeros(head_dim), zeros(head_dim)
        dkey, dvalue = over_parts(tokens, _PART[head_dim], part, carry)
        write(dkey * (head_dim**-0.5 / enlarged), 1, number)
        write(dvalue, 2, number)

    plgpu.wait_smem_to_gmem(0)


def _quarter_of_inverse(x: Array) -> Array:
    """Returns powers of two that bring numbers to between a quarter and a half."""
    exponent = lax.bitcast_convert_type(x, jnp.int32) & _EXPONENT
    return lax.bitcast_convert_type(_INVERSE - exponent, jnp.float32)


def _inverse(powers: Array) -> Array:
    """Returns the inverses of powers of two, exactly."""
    bits = lax.bitcast_convert_type(powers, jnp.int32)
    return lax.bitcast_convert_type(0x7F000000 - bits, jnp.float32)
