"""Forward pass of the TPU attention kernels."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .operands import KEY, LOWEST, QUERY, VALUE, Group, Task, add_up, dot, interleave
from .tail import tail_output
from .tiling import LANES, QueryBlock, Tiling


def forward_kernel(*refs, tiling: Tiling, is_masked: bool, saves: bool):
    """Maps qkv [rows, tokens, 3 width] and bias [rows, 1, tokens] to out [rows, tokens, width] and
    softmax terms [rows, groups, 2, n, lanes]; all in VMEM.

    Softmax terms are, for every query, the largest score and log2 of the sum of its weights, which
    are relative to that score. There is a bias if `is_masked`, and there are terms if `saves`.

    If `tiling.saves_peaks`, row `tiling.peaks_row` of the first term holds numbers whose sum is
    that of the largest weights of the group's queries.
    """
    refs = iter(refs)
    qkv_ref, bias_ref = next(refs), next(refs) if is_masked else None
    out_ref, terms_ref = next(refs), next(refs) if saves else None

    def iteration(i, carry):
        tasks = []
        for u in range(tiling.unroll):
            group = Group(tiling, i * tiling.unroll + u, bias_ref)
            tasks += _tasks(group, qkv_ref, out_ref, terms_ref)
            if tiling.tail:
                tasks.append(tail_output(group, qkv_ref, out_ref))
        interleave(tasks, tiling.blocks.stage_offsets)
        return carry

    jax.lax.fori_loop(0, tiling.rows * tiling.groups // tiling.unroll, iteration, 0)


def _tasks(group: Group, qkv_ref, out_ref, terms_ref) -> list[Task]:
    """Returns a task for every query block and key tile.

    Each tile takes its own maximum, so that none waits for another.
    """
    tiling = group.tiling
    key_tiles = tiling.key_tiles
    finished: dict[int, list[Array]] = {}
    peaks: list[Array] = []

    def task(block: QueryBlock, keys: slice, results: list) -> Task:
        scores = group.scores(qkv_ref, KEY, keys, group.columns(qkv_ref, QUERY, block), block)
        yield
        scores = group.masked(scores, keys)
        # Finite where no key is valid, so that every weight is 2 ** -inf and not NaN.
        row_max = jnp.maximum(jnp.max(scores, 0, keepdims=True), LOWEST)
        weights = group.weights(scores, row_max)
        row_sum = jnp.sum(weights, 0, keepdims=True)
        weights = weights.astype(qkv_ref.dtype)
        yield
        values = group.transposed(qkv_ref, VALUE, keys)[tiling.channels(block.heads)]
        results.append((dot(values, weights, (1, 0)), row_max, row_sum))
        if len(results) == len(key_tiles):
            finish(block, results)

    def finish(block: QueryBlock, results: list) -> None:
        """Combines the results of all key tiles and writes them."""
        outs, maxima, sums = zip(*results, strict=True)
        row_max = functools.reduce(jnp.maximum, maxima)
        factors = [group.weights(x, row_max) if len(results) > 1 else 1.0 for x in maxima]
        row_sum = add_up(x * factor for x, factor in zip(sums, factors, strict=True))
        has_key = row_sum > 0
        divisor = jnp.where(has_key, row_sum, 1.0)
        if terms_ref is not None:
            # Two numbers, not log-sum-exp, which would round a weight of exactly 1.
            terms = jnp.where(has_key, row_max, jnp.inf), jnp.log2(divisor)
            for number, term in enumerate(terms):
                for row, columns in block.stored_rows():
                    own = slice(0, columns.stop - columns.start)
                    terms_ref[group.row, group.group, number, row, own] = term[0, columns]
        inverse = jnp.where(has_key, 1 / divisor, 0.0)
        if terms_ref is not None and tiling.saves_peaks:
            # The largest weight is 1 before the division by the sum.
            starts = range(0, block.columns, LANES)
            lanes = [inverse[:, start : start + LANES] for start in starts]
            peaks.append(add_up(jnp.pad(x, ((0, 0), (0, LANES - x.shape[1]))) for x in lanes))
            if len(peaks) == len(tiling.query_blocks()):
                terms_ref[group.row, group.group, 0, tiling.peaks_row] = add_up(peaks)[0]
        for number, (segment, columns) in enumerate(block.segment_columns()):
            own = slice(number * tiling.head_dim, (number + 1) * tiling.head_dim)
            out = add_up(
                x[own, columns] * (factor * inverse)[:, columns]
                for x, factor in zip(outs, factors, strict=True)
            )
            heads = finished.setdefault(segment.start, [])
            heads.append(out[:, : segment.stop - segment.start])
            if len(heads) == tiling.heads:
                queries = slice(segment.start, segment.stop)
                out_ref[group.row, queries, group.lanes(0)] = (
                    jnp.concatenate(heads, 0).astype(out_ref.dtype).T
                )

    tasks = []
    for block in tiling.query_blocks():
        results = []
        tasks += [task(block, keys, results) for keys in key_tiles]
    return tasks
