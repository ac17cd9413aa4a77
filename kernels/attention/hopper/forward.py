"""Forward pass of the Hopper attention kernels."""

import functools
from typing import Any

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
    end_at,
    fill_with_ones,
    landing,
    landing_and_operand,
    load_columns,
    load_tile,
    of_columns,
    of_rows,
    ones_scratch,
    parts,
    past_end,
    product,
    start_copy,
    store,
    sums_of_rows,
    tile,
    vector,
    zeros,
)

_LEAST = -1e30
"""Smallest maximum of a row of logits: with it a row without a valid key has weights of 0."""
_CHUNK = {32: 288, 64: 192}
"""Keys whose scores a warpgroup holds at once, by width of a head."""
_PART = 128
"""Keys of one product."""


def scratch(rows: int, head_dim: int) -> list:
    """Returns the kernel's memory: q, k, v, each copied and then converted in place; a tile of
    results; ones; log-sum-exps; bias; barriers of q, k, v and of the bias.
    """
    operands = [landing_and_operand(rows, head_dim)] * 3
    tiles = [landing(TILE, head_dim), ones_scratch(jnp.bfloat16)]
    vectors = [vector(TILE), vector(rows)]
    barriers = [plgpu.Barrier(num_arrivals=count * copies(rows)) for count in (3, 1)]
    return [*operands, *tiles, *vectors, *barriers]


def attention_forward(*refs, head_dim: int, is_masked: bool):
    """Maps qkv [batch, tokens, 3 * width], if masked a bias of keys [batch, rows], to outputs
    [batch, tokens, width] and log2-sum-exps [batch, heads, rows], one row and head a program.
    """
    refs = iter(refs)
    qkv, bias = next(refs), next(refs) if is_masked else None
    out, lse, *operands, staged, ones, staged_lse, key_bias, copied, copied_bias = refs
    batch, head = lax.axis_index("batch"), lax.axis_index("heads")
    tokens, width, scale = qkv.shape[1], qkv.shape[2] // 3, LOG2_E * head_dim**-0.5
    number_of_tiles = -(-tokens // TILE)
    for slot, (landed, _) in enumerate(operands):
        lanes = pl.ds(slot * width + head * head_dim, head_dim)
        start_copy(qkv.at[batch], 0, landed, copied, lanes)
    if bias is not None:
        start_copy(bias.at[batch], 0, key_bias, copied_bias)
        plgpu.barrier_wait(copied_bias)
    plgpu.barrier_wait(copied)

    @pl.loop(0, number_of_tiles)
    def _(number):
        for landed, converted in operands:
            converted[tile(number)] = load_tile(landed.at[tile(number)])

    fill_with_ones(ones)
    plgpu.commit_smem()
    q, k, v = (converted for _, converted in operands)

    def logits(query, start: int, length: int) -> Array:
        scores = product(query, k.at[pl.ds(start, length)].T)
        if bias is not None:
            return scores * scale + of_columns(load_columns(key_bias.at[pl.ds(start, length)]))
        return end_at(scores, tokens - start, -jnp.inf)

    factor = 1.0 if is_masked else scale

    @pl.loop(0, number_of_tiles)
    def _(number):
        query = q.at[tile(number)]
        largest: Any = None
        total: Any = None
        result: Any = None
        for first, chunk in parts(tokens, _CHUNK[head_dim]):
            cut = [(first + start, length) for start, length in parts(chunk, _PART)]
            scores = [logits(query, start, length) for start, length in cut]
            former = jnp.full_like(scores[0].max(axis=1), _LEAST) if largest is None else largest
            largest = functools.reduce(jnp.maximum, [x.max(axis=1) for x in scores], former)
            weights = [jnp.exp2(x * factor - of_rows(largest * factor, x.shape[1])) for x in scores]
            if result is None:
                total, result = zeros(SUM_COLUMNS), zeros(head_dim)
            else:
                decay = jnp.exp2((former - largest) * factor)
                total = total * of_rows(decay, SUM_COLUMNS)
                result = result * of_rows(decay, head_dim)
            for x, (start, length) in zip(weights, cut, strict=True):
                x = x.astype(jnp.bfloat16)
                result, total = added(
                    (result, x, v.at[pl.ds(start, length)]), sums_of_rows(total, x, ones)
                )
        total = total.max(axis=1)  # All of its columns are equal.
        log_sum = largest * factor + jnp.log2(total)
        if is_masked:  # Without a valid key all weights are 0, in the backward pass too.
            log_sum = jnp.where(total > 0, log_sum, -_LEAST)
            total = jnp.where(total > 0, total, 1.0)
        lanes = pl.ds(head * head_dim, head_dim)
        result = (result / of_rows(total, head_dim)).astype(jnp.bfloat16)
        store(result, staged, out.at[batch, past_end(number * TILE, TILE), lanes])
        store(log_sum, staged_lse, lse.at[batch, head, tile(number)])

    plgpu.wait_smem_to_gmem(0)
