"""Backward pass of the TPU attention kernels: all gradients at once, with recomputed weights."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array

from .operands import KEY, QUERY, VALUE, Group, Task, add_up, dot, interleave, split
from .tail import tail_gradients
from .tiling import QueryBlock, Tiling

SATURATED = 0.5
"""Softmax is saturated if the largest weights of its queries are more than this on average."""


def backward_kernel(*refs, tiling: Tiling, is_masked: bool):
    """Maps qkv, bias and softmax terms (as in the forward kernel) and dout [rows, tokens, width] to
    dqkv, shaped as qkv; all in VMEM.
    """
    refs = iter(refs)
    qkv_ref, bias_ref = next(refs), next(refs) if is_masked else None
    terms_ref, dout_ref, dqkv_ref = refs
    first, second, third = tiling.blocks.stage_offsets
    # The third stage needs a query's mean over all keys, which the last key tile completes.
    offsets = first, max(second, len(tiling.key_tiles) - 1), third

    def iteration(i, carry):
        def groups() -> list[Group]:
            return [Group(tiling, i * tiling.unroll + u, bias_ref) for u in range(tiling.unroll)]

        def write_gradients(*, in_parts: bool) -> None:
            tasks = []
            for group in groups():
                tasks += _tasks(group, qkv_ref, terms_ref, dout_ref, dqkv_ref, in_parts)
            interleave(tasks, offsets)

        if not tiling.saves_peaks:
            write_gradients(in_parts=True)
            return carry
        peaks = [terms_ref[x.row, x.group, 0, tiling.peaks_row] for x in groups()]
        num_queries = tiling.unroll * sum(block.columns for block in tiling.query_blocks())
        is_saturated = jnp.sum(add_up(peaks)) > SATURATED * num_queries
        pl.when(is_saturated)(functools.partial(write_gradients, in_parts=True))
        pl.when(~is_saturated)(functools.partial(write_gradients, in_parts=False))
        return carry

    jax.lax.fori_loop(0, tiling.rows * tiling.groups // tiling.unroll, iteration, 0)


class _GradientSums:
    """Sums of a group's gradients, each written once its last term is there."""

    def __init__(self, group: Group, dqkv_ref):
        self._group, self._dqkv_ref = group, dqkv_ref
        tiling = group.tiling
        query_terms = tiling.heads * len(tiling.key_tiles)
        segments = sum(len(block.segments) for block in tiling.query_blocks())
        key_terms = segments + (tiling.heads if tiling.tail else 0)
        self._num_terms = {QUERY: query_terms, KEY: key_terms, VALUE: key_terms}
        self._sums: dict[tuple[int, int, int], Array] = {}
        self._missing: dict[tuple[int, int], int] = {}

    def add(self, slot: int, head: int, tokens: slice, term: Array) -> None:
        """Adds a term [head_dim, tokens] to a head's gradient; the last one writes the group's."""
        tiling = self._group.tiling
        name, tile = (slot, head, tokens.start), (slot, tokens.start)
        self._sums[name] = self._sums[name] + term if name in self._sums else term
        self._missing[tile] = self._missing.get(tile, self._num_terms[slot]) - 1
        if not self._missing[tile]:
            heads = [self._sums.pop((slot, h, tokens.start)) for h in range(tiling.heads)]
            gradient = jnp.concatenate(heads, 0) * (1.0 if slot == VALUE else tiling.scale)
            gradient = gradient.astype(self._dqkv_ref.dtype).T
            self._dqkv_ref[self._group.row, tokens, self._group.lanes(slot)] = gradient


def _tasks(group: Group, qkv_ref, terms_ref, dout_ref, dqkv_ref, in_parts: bool) -> list[Task]:
    """Returns a task for every query block and key tile.

    The scores' gradient is multiplied in two parts if `in_parts`, else as one rounded number.
    """
    tiling = group.tiling
    sums = _GradientSums(group, dqkv_ref)

    def stored(number: int, block: QueryBlock) -> Array:
        """Returns a softmax term of the block's queries [1, columns]."""
        rows = [
            terms_ref[group.row, group.group, number, row, : columns.stop - columns.start]
            for row, columns in block.stored_rows()
        ]
        return jnp.concatenate(rows)[None]

    def task(block: QueryBlock, keys: slice, means: list) -> Task:
        queries, douts = group.columns(qkv_ref, QUERY, block), group.columns(dout_ref, 0, block)
        scores = group.scores(qkv_ref, KEY, keys, queries, block)
        dweights = group.scores(qkv_ref, VALUE, keys, douts, block)
        yield
        row_max, log2_row_sum = stored(0, block), stored(1, block)
        weights = jnp.exp2(group.log_weights(group.masked(scores, keys), row_max) - log2_row_sum)
        means.append(jnp.sum(weights * dweights, 0, keepdims=True))
        yield
        dscores = weights * (dweights - add_up(means))
        dscores = split(dscores, qkv_ref.dtype) if in_parts else [dscores]
        has_many = len(block.segments) > 1
        if has_many:  # High and low terms of a head side by side: one product for both.
            dscores = [
                jnp.concatenate([term[:, columns] for term in dscores], 1)
                for _, columns in block.segment_columns()
            ]
        dscores = [term.astype(qkv_ref.dtype) for term in dscores]
        weights = weights.astype(qkv_ref.dtype)
        yield
        own, window = tiling.channels(block.heads), tiling.window(block.heads)
        dvalues = dot(douts[own.start - window.start : own.stop - window.start], weights, (1, 1))
        for number, (segment, columns) in enumerate(block.segment_columns()):
            own = tiling.channels(slice(segment.head, segment.head + 1))
            query = queries[own.start - window.start : own.stop - window.start, columns]
            terms = dscores
            if has_many:
                terms = dscores[number : number + 1]
                query = jnp.concatenate([query] * (terms[0].shape[1] // segment.columns), 1)
            dquery = add_up(
                dot(group.transposed(qkv_ref, KEY, keys)[own], term, (1, 0)) for term in terms
            )
            dkey = add_up(dot(query, term, (1, 1)) for term in terms)
            starts = range(0, dquery.shape[1], segment.columns)
            dquery = add_up(dquery[:, start : start + segment.columns] for start in starts)
            tile = slice(segment.start, segment.stop)
            dvalue = dvalues[number * tiling.head_dim : (number + 1) * tiling.head_dim]
            sums.add(QUERY, segment.head, tile, dquery[:, : tile.stop - tile.start])
            sums.add(KEY, segment.head, keys, dkey)
            sums.add(VALUE, segment.head, keys, dvalue)

    tasks = [tail_gradients(group, qkv_ref, dout_ref, dqkv_ref, sums.add)] if tiling.tail else []
    for block in sorted(tiling.query_blocks(), key=lambda block: block.segments[0].head):
        means = []
        tasks += [task(block, keys, means) for keys in tiling.key_tiles]
    return tasks
