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
    SWIZZLE_COLUMNS,
    TILE,
    added,
    block,
    copy_vector,
    index,
    load_columns,
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

_LEAST = -1e30
"""Smallest maximum of a row of logits: with it a row without a valid key has weights of 0."""
_CHUNK = {32: 288, 64: 256}
"""Keys whose scores a warpgroup holds at once, by width of a head."""
_PART = 128
"""Keys of one product."""


def scratch(rows: int, head_dim: int) -> list:
    """Returns the kernel's memory: q, k, v, a tile of results, log-sum-exps, bias, barriers."""
    blocks = [block(rows, head_dim)] * 3 + [block(TILE, head_dim)]
    return [*blocks, vector(TILE), vector(rows), plgpu.Barrier(num_barriers=4)]


def attention_forward(*refs, tokens: int, head_dim: int, is_masked: bool):
    """Maps qkv [batch, tokens, 3 * width], if masked a bias of keys [batch, rows], to outputs
    [batch, tokens, width] and log2-sum-exps [batch, heads, rows], one row and head a program.
    """
    refs = iter(refs)
    qkv, bias = next(refs), next(refs) if is_masked else None
    out, lse, q, k, v, staged, staged_lse, key_bias, barriers = refs
    batch, head = lax.axis_index("batch"), lax.axis_index("heads")
    rows, width, scale = q.shape[0], qkv.shape[2] // 3, LOG2_E * head_dim**-0.5
    for slot, operand in enumerate((q, k, v)):
        lanes = pl.ds(slot * width + head * head_dim, head_dim)
        start_copy(qkv.at[batch], rows, lanes, operand, barriers.at[slot])
    if bias is not None:
        copy_vector(bias.at[batch], key_bias, barriers.at[3])
    for slot in range(3):
        plgpu.barrier_wait(barriers.at[slot])

    def logits(query, start: int, length: int) -> Array:
        scores = product(query, k.at[pl.ds(start, length)].T)
        if bias is not None:
            return scores * scale + of_columns(load_columns(key_bias.at[pl.ds(start, length)]))
        if start + length > tokens:
            return jnp.where(index(length, 1) + start < tokens, scores, -jnp.inf)
        return scores

    factor = 1.0 if is_masked else scale

    @pl.loop(0, -(-tokens // TILE))
    def _(number):
        query = q.at[tile(number)]
        largest: Any = None
        total: Any = None
        result: Any = None
        for first, chunk in parts(tokens, _CHUNK[head_dim], SWIZZLE_COLUMNS):
            cut = [(first + start, length) for start, length in parts(chunk, _PART, 1)]
            scores = [logits(query, start, length) for start, length in cut]
            former = jnp.full_like(scores[0].max(axis=1), _LEAST) if largest is None else largest
            largest = functools.reduce(jnp.maximum, [x.max(axis=1) for x in scores], former)
            weights = [jnp.exp2(x * factor - of_rows(largest * factor, x.shape[1])) for x in scores]
            own = sum(x.sum(axis=1) for x in weights)
            if result is None:
                total, result = own, zeros(head_dim)
            else:
                decay = jnp.exp2((former - largest) * factor)
                total, result = total * decay + own, result * of_rows(decay, head_dim)
            for x, (start, length) in zip(weights, cut, strict=True):
                result = added(result, x.astype(jnp.bfloat16), v.at[pl.ds(start, length)])
        log_sum = largest * factor + jnp.log2(total)
        if is_masked:  # Without a valid key all weights are 0, in the backward pass too.
            log_sum = jnp.where(total > 0, log_sum, -_LEAST)
            total = jnp.where(total > 0, total, 1.0)
        lanes = pl.ds(head * head_dim, head_dim)
        result = (result / of_rows(total, head_dim)).astype(jnp.bfloat16)
        store(result, staged, out.at[batch, past_end(number * TILE, TILE), lanes])
        store(log_sum, staged_lse, lse.at[batch, head, tile(number)])

    plgpu.wait_smem_to_gmem(0)
