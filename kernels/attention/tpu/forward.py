"""The TPU attention kernel's forward pass."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .operands import LOWEST, Group, Job, add_up, dot, interleave
from .tail import odd_output
from .tiling import Cut, Unit


def forward_kernel(*refs, cut: Cut, masked: bool, saves: bool):
    """qkv [rows, tokens, 3 width], bias [rows, 1, tokens] -> out, statistics [rows, groups, 2, n,
    lanes]; all in VMEM.

    Statistics are each query's largest score, and log2 of the sum of its weights relative to that.
    """
    refs = iter(refs)
    qkv_ref, bias_ref = next(refs), next(refs) if masked else None
    out_ref, statistics_ref = next(refs), next(refs) if saves else None

    def trip(i, carry):
        jobs = []
        for u in range(cut.unroll):
            group = Group(cut, i * cut.unroll + u, bias_ref)
            jobs += _jobs(group, qkv_ref, out_ref, statistics_ref)
            if cut.odd:
                jobs.append(odd_output(group, qkv_ref, out_ref))
        interleave(jobs, cut.blocks.lags)
        return carry

    jax.lax.fori_loop(0, cut.rows * cut.groups // cut.unroll, trip, 0)


def _jobs(group: Group, qkv_ref, out_ref, statistics_ref) -> list[Job]:
    """Returns a job for every unit and tile of keys; each tile has its own maximum: none waits for
    another.
    """
    cut = group.cut
    key_tiles = cut.key_tiles
    finished: dict[int, list[Array]] = {}

    def job(unit: Unit, keys: slice, tiles: list) -> Job:
        scores = group.scores(qkv_ref, 1, keys, group.columns(qkv_ref, 0, unit), unit)
        yield
        scores = group.masked(scores, keys)
        # Finite also where no key is valid: then every weight is 2 ** -inf.
        largest = jnp.maximum(jnp.max(scores, 0, keepdims=True), LOWEST)
        weights = group.weights(scores, largest)
        total = jnp.sum(weights, 0, keepdims=True)
        weights = weights.astype(qkv_ref.dtype)
        yield
        values = group.transposed(qkv_ref, 2, keys)[cut.channels(unit.heads)]
        tiles.append((dot(values, weights, (1, 0)), largest, total))
        if len(tiles) == len(key_tiles):
            finish(unit, tiles)

    def finish(unit: Unit, tiles: list) -> None:
        """Joins the tiles of keys."""
        largest = functools.reduce(jnp.maximum, [tile[1] for tile in tiles])
        shares = [group.weights(tile[1], largest) if len(tiles) > 1 else 1.0 for tile in tiles]
        total = add_up(tile[2] * share for tile, share in zip(tiles, shares, strict=True))
        some = total > 0
        divisor = jnp.where(some, total, 1.0)
        if statistics_ref is not None:
            # Not their sum, log-sum-exp: where one weighs all its weight must come back as exactly
            # 1.
            statistics = jnp.where(some, largest, jnp.inf), jnp.log2(divisor)
            for number, statistic in enumerate(statistics):
                for row, columns in unit.rows():
                    own = slice(0, columns.stop - columns.start)
                    statistics_ref[group.row, group.group, number, row, own] = statistic[0, columns]
        inverse = jnp.where(some, 1 / divisor, 0.0)
        for number, (segment, columns) in enumerate(unit.parts()):
            own = slice(number * cut.head_dim, (number + 1) * cut.head_dim)
            out = add_up(
                tile[0][own, columns] * (share * inverse)[:, columns]
                for tile, share in zip(tiles, shares, strict=True)
            )
            heads = finished.setdefault(segment.start, [])
            heads.append(out[:, : segment.stop - segment.start])
            if len(heads) == cut.heads:
                queries = slice(segment.start, segment.stop)
                out_ref[group.row, queries, group.lanes(0)] = (
                    jnp.concatenate(heads, 0).astype(out_ref.dtype).T
                )

    jobs = []
    for unit in cut.units():
        tiles = []
        jobs += [job(unit, keys, tiles) for keys in key_tiles]
    return jobs
