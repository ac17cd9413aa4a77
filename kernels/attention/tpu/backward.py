"""The TPU attention kernel's backward pass: all gradients in one, with the weights computed again."""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from .operands import Group, Job, add_up, dot, interleave, split
from .tail import odd_gradients
from .tiling import Cut, Unit


def backward_kernel(*refs, cut: Cut, masked: bool):
    """qkv, bias, statistics as in the forward kernel, dout [rows, tokens, width] -> dqkv as qkv;
    all in VMEM.
    """
    refs = iter(refs)
    qkv_ref, bias_ref = next(refs), next(refs) if masked else None
    statistics_ref, dout_ref, dqkv_ref = refs
    first, second, third = cut.blocks.lags
    # The mean of a query's weights is over all keys: no tile may come to it before the last one is
    # weighed.
    lags = first, max(second, len(cut.key_tiles) - 1), third

    def trip(i, carry):
        jobs = []
        for u in range(cut.unroll):
            group = Group(cut, i * cut.unroll + u, bias_ref)
            jobs += _jobs(group, qkv_ref, statistics_ref, dout_ref, dqkv_ref)
        interleave(jobs, lags)
        return carry

    jax.lax.fori_loop(0, cut.rows * cut.groups // cut.unroll, trip, 0)


def _jobs(group: Group, qkv_ref, statistics_ref, dout_ref, dqkv_ref) -> list[Job]:
    """Returns a job for every unit and tile of keys."""
    cut = group.cut
    key_tiles, units = cut.key_tiles, cut.units()
    sums: dict[tuple[int, int, int], Array] = {}
    missing: dict[tuple[int, int], int] = {}
    terms = (
        cut.heads * len(key_tiles),
        sum(len(unit.segments) for unit in units) + (cut.heads if cut.odd else 0),
    )

    def add(part: int, head: int, tokens: slice, term: Array) -> None:
        """Adds to a head's gradient [head_dim, tokens]; writes that of the group when it is whole."""
        name, tile = (part, head, tokens.start), (part, tokens.start)
        sums[name] = sums[name] + term if name in sums else term
        missing[tile] = missing.get(tile, terms[min(part, 1)]) - 1
        if not missing[tile]:
            heads = [sums.pop((part, h, tokens.start)) for h in range(cut.heads)]
            gradient = jnp.concatenate(heads, 0) * (cut.scale if part < 2 else 1.0)
            dqkv_ref[group.row, tokens, group.lanes(part)] = gradient.astype(dqkv_ref.dtype).T

    def job(unit: Unit, keys: slice, means: list) -> Job:
        queries, douts = group.columns(qkv_ref, 0, unit), group.columns(dout_ref, 0, unit)
        scores = group.scores(qkv_ref, 1, keys, queries, unit)
        dweights = group.scores(qkv_ref, 2, keys, douts, unit)
        yield
        largest, log_sum = (
            jnp.concatenate(
                [
                    statistics_ref[
                        group.row, group.group, number, row, : columns.stop - columns.start
                    ]
                    for row, columns in unit.rows()
                ]
            )[None]
            for number in range(2)
        )
        weights = jnp.exp2(group.log_weights(group.masked(scores, keys), largest) - log_sum)
        means.append(jnp.sum(weights * dweights, 0, keepdims=True))
        yield
        dscores = split(weights * (dweights - add_up(means)), qkv_ref.dtype)
        if (
            len(unit.segments) > 1
        ):  # High and low parts of a head beside one another: one product for both.
            dscores = [
                jnp.concatenate([part[:, columns] for part in dscores], 1)
                for _, columns in unit.parts()
            ]
        dscores = [part.astype(qkv_ref.dtype) for part in dscores]
        weights = weights.astype(qkv_ref.dtype)
        yield
        own, window = cut.channels(unit.heads), cut.window(unit.heads)
        dvalues = dot(douts[own.start - window.start : own.stop - window.start], weights, (1, 1))
        for number, (segment, columns) in enumerate(unit.parts()):
            own = cut.channels(slice(segment.head, segment.head + 1))
            query = queries[own.start - window.start : own.stop - window.start, columns]
            parts = dscores
            if len(unit.segments) > 1:
                parts = dscores[number : number + 1]
                query = jnp.concatenate([query] * (parts[0].shape[1] // segment.columns), 1)
            dquery = add_up(
                dot(group.transposed(qkv_ref, 1, keys)[own], part, (1, 0)) for part in parts
            )
            dkey = add_up(dot(query, part, (1, 1)) for part in parts)
            halves = range(0, dquery.shape[1], segment.columns)
            dquery = add_up(dquery[:, start : start + segment.columns] for start in halves)
            tile = slice(segment.start, segment.stop)
            add(0, segment.head, tile, dquery[:, : tile.stop - tile.start])
            add(1, segment.head, keys, dkey)
            add(2, segment.head, keys, dvalues[number * cut.head_dim : (number + 1) * cut.head_dim])

    jobs = [odd_gradients(group, qkv_ref, dout_ref, dqkv_ref, add)] if cut.odd else []
    for unit in sorted(units, key=lambda unit: unit.segments[0].head):
        means = []
        jobs += [job(unit, keys, means) for keys in key_tiles]
    return jobs
