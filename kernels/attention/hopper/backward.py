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
    index,
    load_columns,
    load_rows,
    of_columns,
    of_rows,
    parts,
    past_end,
    product,
    split,
    start_copy,
    store,
    tile,
    vector,
    zeros,
)

_PART = 96
"""Keys of one product where a query's mean is summed."""


def scratch(rows: int, head_dim: int) -> list:
    """Returns the kernel's memory: q, k, v, dout; a tile of results; two tiles of scores'
    gradients; log-sum-exps, means, bias; barriers.
    """
    blocks = [block(rows, head_dim)] * 4 + [block(TILE, head_dim)] + [block(TILE, TILE)] * 2
    return [*blocks, *[vector(rows)] * 3, plgpu.Barrier(num_barriers=6)]


def attention_backward(*refs, tokens: int, head_dim: int, is_masked: bool):
    """Maps qkv, bias and log2-sum-exps (as in the forward kernel) and dout [batch, tokens, width]
    to dqkv, shaped as qkv, one row and head a program.
    """
    refs = iter(refs)
    qkv, bias = next(refs), next(refs) if is_masked else None
    lse, dout, dqkv, q, k, v, do, staged, high, low, sums, means, key_bias, barriers = refs
    batch, head = lax.axis_index("batch"), lax.axis_index("heads")
    rows, width, scale = q.shape[0], qkv.shape[2] // 3, LOG2_E * head_dim**-0.5
    number_of_tiles = -(-tokens // TILE)

    def lanes(slot: int):
        return pl.ds(slot * width + head * head_dim, head_dim)

    sources = (qkv, 0, q), (qkv, 1, k), (qkv, 2, v), (dout, 0, do)
    for number, (source, slot, operand) in enumerate(sources):
        start_copy(source.at[batch], rows, lanes(slot), operand, barriers.at[number])
    copy_vector(lse.at[batch, head], sums, barriers.at[4])
    if bias is not None:
        copy_vector(bias.at[batch], key_bias, barriers.at[5])
    for number in range(4):
        plgpu.barrier_wait(barriers.at[number])

    def mean(number) -> None:
        """Sums the mean of the weights' gradients over the keys of a tile of queries."""
        total = row_sums = load_rows(sums.at[tile(number)])
        total = total * 0.0
        for start, length in parts(tokens, _PART, 8):
            keys = pl.ds(start, length)
            logits = product(q.at[tile(number)], k.at[keys].T) * scale
            if bias is not None:
                logits = logits + of_columns(load_columns(key_bias.at[keys]))
            weights = jnp.exp2(logits - of_rows(row_sums, length))
            if bias is None and start + length > tokens:
                weights = jnp.where(index(length, 1) + start < tokens, weights, 0.0)
            gradient = product(do.at[tile(number)], v.at[keys].T)
            total = total + (weights * gradient).sum(axis=1)
        means[tile(number)] = total

    def of_keys(number, dqueries: list, *, is_last: bool) -> list:
        """Writes the gradients of a tile of keys and values, and adds to those of the queries."""
        keys, values = k.at[tile(number)], v.at[tile(number)]
        dkeys, dvalues, results = zeros(head_dim), zeros(head_dim), []
        if bias is not None:
            row_bias = load_rows(key_bias.at[tile(number)])
        for (start, length), dquery in zip(
            parts(tokens, TILE, SWIZZLE_COLUMNS), dqueries, strict=True
        ):
            part = pl.ds(start, length)
            queries, douts = q.at[part], do.at[part]
            logits = product(keys, queries.T) * scale
            column_sums = of_columns(load_columns(sums.at[part]))
            if bias is not None:
                logits = logits + of_rows(row_bias, length)
            weights = jnp.exp2(logits - column_sums)
            if bias is None and is_last and tokens % TILE:
                is_key = index(length, 0) + number * TILE < tokens
                weights = jnp.where(is_key, weights, 0.0)
            gradient = product(values, douts.T)
            gradient = weights * (gradient - of_columns(load_columns(means.at[part])))
            dvalues = added(dvalues, weights.astype(jnp.bfloat16), douts)
            terms = split(gradient)
            for ref, term in zip((high, low), terms, strict=True):
                ref.at[:, pl.ds(0, length)][...] = term
            plgpu.commit_smem()
            dkeys = added(dkeys, terms[0], queries)
            for ref in (high, low):
                dquery = added(dquery, ref.T, keys)
            results.append(dquery)
        for slot, x in ((1, dkeys * head_dim**-0.5), (2, dvalues)):
            x = x.astype(jnp.bfloat16)
            store(x, staged, dqkv.at[batch, past_end(number * TILE, TILE), lanes(slot)])
        return results

    pl.loop(0, number_of_tiles)(mean)
    plgpu.commit_smem()
    dqueries = lax.fori_loop(
        0,
        number_of_tiles - 1,
        lambda number, dqueries: of_keys(number, dqueries, is_last=False),
        [zeros(head_dim)] * number_of_tiles,
    )
    dqueries = of_keys(number_of_tiles - 1, dqueries, is_last=True)
    for number, x in enumerate(dqueries):
        x = (x * head_dim**-0.5).astype(jnp.bfloat16)
        store(x, staged, dqkv.at[batch, past_end(number * TILE, TILE), lanes(0)])
    plgpu.wait_smem_to_gmem(0)
