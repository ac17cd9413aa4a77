"""Mechanisms that both TPU attention kernels use: operands of a head group, products, order."""

import functools
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array

from .tiling import LANES, PACKED_ROWS, QueryBlock, Tiling

LOG2E = math.log2(math.e)
LOWEST = float(jnp.finfo(jnp.float32).min)
QUERY, KEY, VALUE = range(3)
"""Slots of a packed array [..., 3 * width], `width` channels each. The output has slot 0 only."""

type Task = Iterator[None]
"""A generator that pauses between the stages of its work."""


def dot(a: Array, b: Array, contract: tuple[int, int]) -> Array:
    """Contracts one axis of each matrix, summed in float32; float32 matrices are not rounded."""
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    dimensions = ((contract[:1], contract[1:]), ((), ()))
    return jax.lax.dot_general(
        a, b, dimensions, precision=precision, preferred_element_type=jnp.float32
    )


def add_up(arrays: Iterable[Array]) -> Array:
    """Returns the sum of at least one array."""
    return functools.reduce(operator.add, arrays)


def split(x: Array, dtype: jnp.dtype) -> list[Array]:
    """Splits x into terms exact in `dtype` that sum to x.

    [x] for float32; [high, low] for bfloat16, about 16 mantissa bits together.
    """
    if dtype == jnp.float32:
        return [x]
    # Truncated, not rounded: a conversion to bfloat16 and back makes the compiler abort.
    bits = jax.lax.bitcast_convert_type(x, jnp.int32) & jnp.int32(-65536)
    high = jax.lax.bitcast_convert_type(bits, jnp.float32)
    return [high, x - high]


def interleave(tasks: Sequence[Task], stage_offsets: Sequence[int]) -> None:
    """Writes the stages of all tasks as a software pipeline: stage k + 1 of a task comes
    `stage_offsets[k]` tasks after its stage k.

    The compiler's scheduler keeps close to the order of the source. In this order the matrix units
    work on one task while the vector units work on another.
    """
    delays = [sum(stage_offsets[:stage]) for stage in range(len(stage_offsets) + 1)]
    for time in range(len(tasks) + delays[-1]):
        for delay in delays:
            if 0 <= time - delay < len(tasks):
                next(tasks[time - delay], None)


class Group:
    """One group of heads of one row; operands that are used again are computed once."""

    def __init__(self, tiling: Tiling, index: Array, bias_ref):
        self.tiling, self.bias_ref = tiling, bias_ref
        # lax: `//` and `%` of traced integers look up the default device, which may not exist.
        self.row = jax.lax.div(index, tiling.groups)
        self.group = jax.lax.rem(index, tiling.groups) if tiling.groups > 1 else 0
        self._cache = {}

    def _once(self, name: tuple, make: Callable[[], Array]) -> Array:
        if name not in self._cache:
            self._cache[name] = make()
        return self._cache[name]

    def lanes(self, slot: int, window: slice | None = None) -> pl.Slice:
        """Returns the lanes of the group, or of a window of it, in a slot of a packed array."""
        size = self.tiling.group_width
        window = window or slice(0, size)
        length = window.stop - window.start
        if isinstance(self.group, int):
            return pl.ds(slot * size + window.start, length)
        return pl.ds(
            pl.multiple_of((slot * self.tiling.groups + self.group) * size, size) + window.start,
            length,
        )

    def load(self, ref, slot: int, tokens: slice, window: slice | None = None) -> Array:
        """Returns tokens by channels, as the operand of a product."""

        def make() -> Array:
            x = ref[self.row, tokens, self.lanes(slot, window)]
            # Rows that end within a packed register load as integers, which Mosaic cannot multiply:
            # a round trip through float32 makes them floats.
            is_packed = x.dtype == jnp.float32 or x.shape[0] % PACKED_ROWS == 0
            return x if is_packed else x.astype(jnp.float32).astype(x.dtype)

        name = ("load", id(ref), slot, tokens.start, tokens.stop)
        return self._once(name if window is None else (*name, window.start, window.stop), make)

    def transposed(self, ref, slot: int, tokens: slice) -> Array:
        """Returns the group's channels by tokens."""
        name = ("transposed", id(ref), slot, tokens.start, tokens.stop)
        return self._once(name, lambda: ref[self.row, tokens, self.lanes(slot)].T)

    def columns(self, ref, slot: int, block: QueryBlock) -> Array:
        """Returns the block's queries as columns over the channels of its window.

        The columns of a head are zero in the channels of other heads, so that a product over the
        window is one over the head. No lane has to move, and the matrix unit multiplies whole lane
        tiles anyway.
        """

        def make() -> Array:
            window = self.tiling.window(block.heads)
            columns = []
            for segment in block.segments:
                own = self.tiling.channels(slice(segment.head, segment.head + 1))
                x = self.transposed(ref, slot, slice(segment.start, segment.stop))[own]
                above, below = own.start - window.start, window.stop - own.stop
                columns.append(jnp.pad(x, ((above, below), (0, segment.columns - x.shape[1]))))
            return jnp.concatenate(columns, 1)

        return self._once(("columns", id(ref), slot, block.row), make)

    def scores(self, ref, slot: int, keys: slice, columns: Array, block: QueryBlock) -> Array:
        """Multiplies keys (or values) with the block's columns: [keys, columns]."""
        return dot(self.load(ref, slot, keys, self.tiling.window(block.heads)), columns, (1, 0))

    def masked(self, scores: Array, keys: slice) -> Array:
        """Returns the scores with -inf where the key is not valid."""
        if self.bias_ref is None:
            return scores

        def make() -> Array:
            # The bias is a row vector in memory; the scores have keys along sublanes.
            row = self.bias_ref[self.row, :, keys]
            return jnp.broadcast_to(row, (LANES, row.shape[1])).T

        column = self._once(("bias", keys.start), make)
        repeats = -(-scores.shape[1] // LANES)
        return scores + jnp.concatenate([column] * repeats, 1)[:, : scores.shape[1]]

    def weights(self, scores: Array, row_max: Array) -> Array:
        """Computes exp(logit - largest logit), which is exactly 1 where they are equal."""
        return jnp.exp2(self.log_weights(scores, row_max))

    def log_weights(self, scores: Array, row_max: Array) -> Array:
        """Computes log2 of `weights`. Scores are scaled after the subtraction, which is then exact
        where they are equal.
        """
        return (scores - row_max) * (self.tiling.scale * LOG2E)
