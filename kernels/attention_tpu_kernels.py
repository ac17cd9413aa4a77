"""The bodies of the TPU attention kernels: forward, and backward in one pass.

How the work is cut, and why, is in `README.md` beside this file.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array

from .block_sizes import Blocks

_LANES = 128
_LOG2E = math.log2(math.e)
_LOWEST = float(jnp.finfo(jnp.float32).min)


class Cut(NamedTuple):
    """How one kernel's share of the arrays is cut into units of work."""

    blocks: Blocks
    rows: int
    tokens: int
    width: int
    head_dim: int
    group_width: int

    @property
    def groups(self) -> int:
        return self.width // self.group_width

    @property
    def heads(self) -> int:
        """Heads of a group."""
        return self.group_width // self.head_dim

    @property
    def unroll(self) -> int:
        """Groups per trip of the kernel's loop."""
        return math.gcd(self.rows * self.groups, self.blocks.unroll)

    @property
    def scale(self) -> float:
        return self.head_dim**-0.5

    @property
    def query_tiles(self) -> list[slice]:
        return _tiles(self.tokens, self.blocks.query_tile)

    @property
    def key_tiles(self) -> list[slice]:
        return _tiles(self.tokens, self.blocks.key_tile)

    def head(self, h: int) -> slice:
        """Channels of a head within its group."""
        return slice(h * self.head_dim, (h + 1) * self.head_dim)

    def window(self, h: int) -> slice:
        """The whole lane tiles that hold a head's channels."""
        head = self.head(h)
        stop = -(-head.stop // _LANES) * _LANES
        return slice(head.start // _LANES * _LANES, min(stop, self.group_width))


def _tiles(tokens: int, size: int) -> list[slice]:
    starts = list(range(0, tokens, size))
    if len(starts) > 1 and tokens - starts[-1] < 8:
        starts.pop()  # A sliver costs as much as a tile, and Mosaic refuses one of a single lane.
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], tokens], strict=True)]


def make_cut(batch: int, tokens: int, width: int, num_heads: int, blocks: Blocks) -> Cut:
    """Returns the cut that `blocks` asks for, as far as the shape allows."""
    rows = max(rows for rows in range(1, min(blocks.rows, batch) + 1) if batch % rows == 0)
    return Cut(blocks, rows, tokens, width, width // num_heads, group_width(width, width // num_heads))


def group_width(width: int, head_dim: int) -> int:
    """Returns the channels of the smallest group of whole heads that starts and ends with a lane tile."""
    size = math.lcm(head_dim, _LANES)
    return width if width % size else size


def _dot(a: Array, b: Array, contract: tuple[int, int]) -> Array:
    """Contracts one axis of each matrix, summed in float32; float32 matrices are not rounded."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    dimensions = ((contract[:1], contract[1:]), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


def _pipeline(units: Sequence, stages: Sequence[Callable], lag: int) -> None:
    """Writes every unit's stages one after the other, a stage `lag` units behind the one before.

    The compiler's scheduler keeps close to the order of the source: this is what lets the matrix
    units work on one unit while the vector units work on another.
    """
    held = {}
    for time in range(len(units) + lag * (len(stages) - 1)):
        for place, stage in enumerate(stages):
            n = time - place * lag
            if 0 <= n < len(units):
                held[n] = stage(units[n], *held.pop(n, ()))


class _Group:
    """One group of heads of one row, as the kernels use it; what is asked twice is computed once."""

    def __init__(self, cut: Cut, index: Array, bias_ref):
        self.cut, self.bias_ref = cut, bias_ref
        # lax: `//` and `%` of traced integers ask for the device, and there may be none.
        self.row = jax.lax.div(index, cut.groups)
        self.group = jax.lax.rem(index, cut.groups) if cut.groups > 1 else 0
        self._cache = {}

    def channels(self, part: int) -> pl.Slice:
        """Where the group lies among the channels of an array of `part + 1` or more times the width."""
        size = self.cut.group_width
        if isinstance(self.group, int):
            return pl.ds(part * size, size)
        return pl.ds(pl.multiple_of((part * self.cut.groups + self.group) * size, size), size)

    def once(self, name: tuple, make: Callable[[], Array]) -> Array:
        if name not in self._cache:
            self._cache[name] = make()
        return self._cache[name]

    def load(self, ref, part: int = 0, tokens: slice = slice(None)) -> Array:
        return self.once(
            ("load", id(ref), part, tokens.start), lambda: ref[self.row, tokens, self.channels(part)]
        )

    def transposed(self, ref, part: int = 0) -> Array:
        return self.once(("transposed", id(ref), part), lambda: self.load(ref, part).T)

    def only_head(self, h: int, ref, part: int, tokens: slice) -> Array:
        """A head's window, zero in the channels of other heads: a contraction over it is over the head."""

        def make() -> Array:
            window, head = self.cut.window(h), self.cut.head(h)
            x = self.load(ref, part, tokens)[:, window]
            if (window.start, window.stop) == (head.start, head.stop):
                return x
            lane = jax.lax.broadcasted_iota(jnp.int32, (1, x.shape[1]), 1) + window.start
            keep = (lane >= head.start) & (lane < head.stop)
            return (x.astype(jnp.float32) * keep.astype(jnp.float32)).astype(x.dtype)

        return self.once(("only_head", id(ref), part, h, tokens.start), make)

    def scores(self, h: int, keys: slice, queries: slice, key_ref, key_part: int, query_ref) -> Array:
        """Products of a head's keys and queries [keys, queries]; the same for values and output gradients."""
        query = self.load(query_ref, 0, queries)[:, self.cut.window(h)]
        return _dot(self.only_head(h, key_ref, key_part, keys), query, (1, 1))

    def logits(self, scores: Array, keys: slice) -> Array:
        """Scores to logits of base 2; -inf where the key is not valid."""
        logits = scores * (self.cut.scale * _LOG2E)
        if self.bias_ref is None:
            return logits

        def make() -> Array:
            # The bias is a row vector in memory; the scores want it along sublanes.
            column = jnp.broadcast_to(self.bias_ref[self.row], (_LANES, self.cut.tokens)).T
            repeats = -(-self.cut.blocks.query_tile // _LANES) + 1
            return jnp.concatenate([column] * repeats, axis=1)

        return logits + self.once(("bias",), make)[keys, : logits.shape[1]]


def forward_kernel(*refs, cut: Cut, masked: bool, saves: bool):
    """qkv [rows, tokens, 3 width], bias [rows, 1, tokens] -> out, lse [rows, groups, heads, tokens]; all in VMEM."""
    refs = iter(refs)
    qkv_ref, bias_ref = next(refs), next(refs) if masked else None
    out_ref, lse_ref = next(refs), next(refs) if saves else None
    key_tiles = cut.key_tiles

    def trip(i, carry):
        groups = [_Group(cut, i * cut.unroll + u, bias_ref) for u in range(cut.unroll)]
        units = [
            (group, queries, h, keys)
            for group in groups
            for queries in cut.query_tiles
            for h in range(cut.heads)
            for keys in key_tiles
        ]
        tiles, heads = [], []

        def score(unit):
            group, queries, h, keys = unit
            return (group.scores(h, keys, queries, qkv_ref, 1, qkv_ref),)

        def weigh(unit, scores):
            group, _, _, keys = unit
            logits = group.logits(scores, keys)
            # Finite also where no key is valid: then every weight is 2 ** -inf.
            largest = jnp.maximum(jnp.max(logits, 0, keepdims=True), _LOWEST)
            weights = jnp.exp2(logits - largest)
            return weights.astype(qkv_ref.dtype), largest, jnp.sum(weights, 0, keepdims=True)

        def combine(unit, weights, largest, total):
            group, queries, h, keys = unit
            values = group.transposed(qkv_ref, 2)[cut.head(h), keys]
            tiles.append((_dot(values, weights, (1, 0)), largest, total))
            if keys is key_tiles[-1]:
                heads.append(join(group, queries, h))
                tiles.clear()
            if len(heads) == cut.heads:
                write(group, queries)
                heads.clear()
            return ()

        def join(group, queries, h):
            """Each tile of keys has its own maximum: no tile waits for another."""
            largest = functools.reduce(jnp.maximum, [tile[1] for tile in tiles])
            out, total = 0.0, 0.0
            for part, tile_largest, tile_total in tiles:
                share = jnp.exp2(tile_largest - largest) if len(tiles) > 1 else 1.0
                out, total = out + part * share, total + tile_total * share
            some = total > 0
            divisor = jnp.where(some, total, 1.0)
            if lse_ref is not None:
                lse = jnp.where(some, largest + jnp.log2(divisor), jnp.inf)
                lse_ref[group.row, group.group, h, queries] = lse[0]
            return out * jnp.where(some, 1 / divisor, 0.0)

        def write(group, queries):
            out = jnp.concatenate(heads, 0).astype(out_ref.dtype)
            out_ref[group.row, queries, group.channels(0)] = out.T

        _pipeline(units, (score, weigh, combine), cut.blocks.lag)
        return carry

    jax.lax.fori_loop(0, cut.rows * cut.groups // cut.unroll, trip, 0)


def backward_kernel(*refs, cut: Cut, masked: bool):
    """qkv, bias, lse as in the forward kernel, dout [rows, tokens, width] -> dqkv as qkv; all in VMEM."""
    refs = iter(refs)
    qkv_ref, bias_ref = next(refs), next(refs) if masked else None
    lse_ref, dout_ref, dqkv_ref = refs
    key_tiles, query_tiles = cut.key_tiles, cut.query_tiles

    def trip(i, carry):
        groups = [_Group(cut, i * cut.unroll + u, bias_ref) for u in range(cut.unroll)]
        units = [
            (group, h, queries, keys)
            for group in groups
            for h in range(cut.heads)
            for queries in query_tiles
            for keys in key_tiles
        ]
        means, dq, dk, dv = {}, {}, {}, {}

        def score(unit):
            group, h, queries, keys = unit
            return (
                group.scores(h, keys, queries, qkv_ref, 1, qkv_ref),
                group.scores(h, keys, queries, qkv_ref, 2, dout_ref),
            )

        def weigh(unit, scores, dweights):
            group, h, queries, keys = unit
            lse = lse_ref[group.row, group.group, h, queries][None]
            weights = jnp.exp2(group.logits(scores, keys) - lse)
            _add(means, (group, h, queries.start), jnp.sum(weights * dweights, 0, keepdims=True))
            return weights, dweights

        def differ(unit, weights, dweights):
            group, h, queries, _ = unit
            dscores = weights * (dweights - means[group, h, queries.start])
            return weights.astype(qkv_ref.dtype), dscores.astype(qkv_ref.dtype)

        def combine(unit, weights, dscores):
            group, h, queries, keys = unit
            query, key = group.transposed(qkv_ref, 0), group.transposed(qkv_ref, 1)
            head = cut.head(h)
            _add(dq, (h, queries.start), _dot(key[head, keys], dscores, (1, 0)))
            _add(dk, (h, keys.start), _dot(query[head, queries], dscores, (1, 1)))
            _add(dv, (h, keys.start), _dot(group.transposed(dout_ref)[head, queries], weights, (1, 1)))
            if h == cut.heads - 1 and queries is query_tiles[-1] and keys is key_tiles[-1]:
                for part, (sums, tiles, factor) in enumerate(
                    ((dq, query_tiles, cut.scale), (dk, key_tiles, cut.scale), (dv, key_tiles, 1.0))
                ):
                    rows = [
                        jnp.concatenate([sums[h, tile.start] for tile in tiles], 1) for h in range(cut.heads)
                    ]
                    gradient = (jnp.concatenate(rows, 0) * factor).astype(dqkv_ref.dtype)
                    dqkv_ref[group.row, :, group.channels(part)] = gradient.T
                    sums.clear()
            return ()

        # The mean is of all keys: no tile may come to `differ` before the last one went through `weigh`.
        _pipeline(units, (score, weigh, differ, combine), max(cut.blocks.lag, len(key_tiles)))
        return carry

    jax.lax.fori_loop(0, cut.rows * cut.groups // cut.unroll, trip, 0)


def _add(sums: dict, name: tuple, x: Array) -> None:
    sums[name] = sums[name] + x if name in sums else x
