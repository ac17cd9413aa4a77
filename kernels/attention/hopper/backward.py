"""Backward pass of the Hopper attention kernels: all gradients at once, with recomputed weights."""

import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array

from .operands import (
    LOG2_E,
    SWIZZLE_COLUMNS,
    TILE,
    added,
    block,
    copy_vector,
    load_columns,
    load_rows,
    load_tile,
    of_columns,
    of_rows,
    parts,
    past_end,
    product,
    start_copy,
    store,
    tile,
    vector,
    zeros,
)

_KEYS, _QUERIES = 64, 96
"""Keys of a product in the first pass, and queries in the second: as many as registers hold."""
_EXPONENT = 0x7F800000
"""The bits of a float32 that hold its exponent."""
_INVERSE = 0x7E000000
"""Bits from which those of a power of two are taken: the result is a quarter of its inverse."""


def scratch(rows: int, head_dim: int) -> list:
    """Returns the kernel's memory: queries and keys, each loaded as bfloat16 and converted to
    float16 in the same place; values; dout; a tile of results; log-sum-exps, means, bias, a number
    of each row of a tile; barriers.
    """
    operand = block(rows, head_dim)
    both = plgpu.RefUnion(operand, block(rows, head_dim, jnp.float16))
    blocks = [both, both, operand, operand, block(TILE, head_dim)]
    vectors = [*[vector(rows)] * 3, vector(TILE)]
    return [*blocks, *vectors, plgpu.Barrier(num_barriers=7)]


def attention_backward(*refs, tokens: int, head_dim: int, is_masked: bool):
    """Computes dqkv, shaped as qkv, one row and head a program.

    Its arrays are qkv; a bias of keys [batch, rows], or [1, rows] if only padding has one; outputs
    and log2-sum-exps, as the forward kernel gives them; dout [batch, tokens, width]; dqkv; and
    those of `scratch`.
    """
    qkv, bias, out, lse, dout, dqkv, (loaded_q, q), (loaded_k, k), v, do, staged, *refs = refs
    sums, means, key_bias, of_tile, barriers = refs
    batch, head = lax.axis_index("batch"), lax.axis_index("heads")
    rows, width, scale = q.shape[0], qkv.shape[2] // 3, LOG2_E * head_dim**-0.5
    number_of_tiles = -(-tokens // TILE)

    def start(number: int, source, slot: int, operand) -> None:
        lanes = pl.ds(slot * width + head * head_dim, head_dim)
        start_copy(source.at[batch], rows, lanes, operand, barriers.at[number])

    def write(x: Array, slot: int, number) -> None:
        lanes = pl.ds(slot * width + head * head_dim, head_dim)
        place = past_end(number * TILE, TILE)
        store(x.astype(jnp.bfloat16), staged, dqkv.at[batch, place, lanes])

    start(0, dout, 0, do)
    start(1, out, 0, loaded_k)  # The keys take its place.
    start(2, qkv, 0, loaded_q)
    start(3, qkv, 2, v)
    copy_vector(lse.at[batch, head], sums, barriers.at[5])
    copy_vector(bias.at[batch if is_masked else 0], key_bias, barriers.at[6])
    for number in range(4):
        plgpu.barrier_wait(barriers.at[number])

    def prepare(number, peak: Array) -> Array:
        """Converts a tile of queries, estimates means; returns the largest gradients so far."""
        rows = tile(number)
        q[rows] = load_tile(loaded_q.at[rows]).astype(jnp.float16)
        douts = load_tile(do.at[rows])
        means[rows] = (douts * load_tile(loaded_k.at[rows])).sum(axis=1)
        return jnp.maximum(peak, jnp.abs(douts).max(axis=1))

    peak = lax.fori_loop(0, number_of_tiles, prepare, zeros(head_dim).max(axis=1))
    exponent = lax.bitcast_convert_type(peak, jnp.int32) & _EXPONENT
    of_tile[...] = lax.bitcast_convert_type(_INVERSE - exponent, jnp.float32)
    plgpu.commit_smem()
    start(4, qkv, 1, loaded_k)
    enlarged = load_columns(of_tile).min()
    reduced = head_dim**-0.5 / enlarged
    plgpu.barrier_wait(barriers.at[4])

    @pl.loop(0, number_of_tiles)
    def _(number):
        k[tile(number)] = load_tile(loaded_k.at[tile(number)]).astype(jnp.float16)

    plgpu.commit_smem()

    @pl.loop(0, number_of_tiles)
    def _(number):
        rows = tile(number)
        row_sums, estimate = load_rows(sums.at[rows]), load_rows(means.at[rows]) * enlarged
        dquery, mean_key, rest = zeros(head_dim), zeros(head_dim), estimate * 0.0
        for first, length in parts(tokens, _KEYS, SWIZZLE_COLUMNS):
            keys = pl.ds(first, length)
            logits = product(q.at[rows], k.at[keys].T) * scale
            if is_masked or first + length > tokens:
                logits = logits + of_columns(load_columns(key_bias.at[keys]))
            weights = jnp.exp2(logits - of_rows(row_sums, length))
            mean_key = added(mean_key, weights.astype(jnp.float16), k.at[keys])
            gradient = product(do.at[rows], v.at[keys].T) * enlarged
            gradient = weights * (gradient - of_rows(estimate, length))
            rest = rest + gradient.sum(axis=1)
            dquery = added(dquery, gradient.astype(jnp.float16), k.at[keys])
        means[rows] = estimate + rest
        write((dquery - of_rows(rest, head_dim) * mean_key) * reduced, 0, number)

    plgpu.commit_smem()

    @pl.loop(0, number_of_tiles)
    def _(number):
        rows = tile(number)
        dkey, dvalue = zeros(head_dim), zeros(head_dim)
        for first, length in parts(tokens, _QUERIES, SWIZZLE_COLUMNS):
            part = pl.ds(first, length)
            logits = product(k.at[rows], q.at[part].T) * scale
            if is_masked:
                logits = logits + of_rows(load_rows(key_bias.at[rows]), length)
            weights = jnp.exp2(logits - of_columns(load_columns(sums.at[part])))
            dvalue = added(dvalue, weights.astype(jnp.bfloat16), do.at[part])
            gradient = product(v.at[rows], do.at[part].T) * enlarged
            gradient = weights * (gradient - of_columns(load_columns(means.at[part])))
            dkey = added(dkey, gradient.astype(jnp.float16), q.at[part])
        # Rows of padding may hold anything so far.
        is_key = of_rows(load_rows(key_bias.at[rows]), head_dim) == 0.0
        write(jnp.where(is_key, dkey * reduced, 0.0), 1, number)
        write(jnp.where(is_key, dvalue, 0.0), 2, number)

    plgpu.wait_smem_to_gmem(0)
