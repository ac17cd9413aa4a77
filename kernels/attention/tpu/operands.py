"""What the forward and the backward TPU attention kernels have in common: operands of a group,
products, order.
"""

import functools
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array

from .tiling import LANES, PACKED_ROWS, Cut, Unit

LOG2E = math.log2(math.e)
LOWEST = float(jnp.finfo(jnp.float32).min)

type Job = Iterator[None]
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
    """Returns float32 numbers as a sum of float32 numbers that the dtype holds: two of bfloat16, 16
    bits together.
    """
    if dtype == jnp.float32:
        return [x]
    # Cut off, not rounded: the compiler aborts where a packed number is unpacked again.
    bits = jax.lax.bitcast_convert_type(x, jnp.int32) & jnp.int32(-65536)
    high = jax.lax.bitcast_convert_type(bits, jnp.float32)
    return [high, x - high]


def interleave(jobs: Sequence[Job], lags: Sequence[int]) -> None:
    """Runs every job's stages one after the other, stage k `lags[k]` jobs behind the one before.

    The compiler's scheduler keeps close to the order of the source: this is what lets the matrix
    units work on one unit while the vector units work on another.
    """
    delays = [sum(lags[:stage]) for stage in range(len(lags) + 1)]
    for time in range(len(jobs) + delays[-1]):
        for delay in delays:
            if 0 <= time - delay < len(jobs):
                next(jobs[time - delay], None)


class Group:
    """One group of heads of one row, as the kernels use it; what is asked twice is computed once."""

    def __init__(self, cut: Cut, index: Array, bias_ref):
        self.cut, self.bias_ref = cut, bias_ref
        # lax: `//` and `%` of traced integers ask for the device, and there may be none.
        self.row = jax.lax.div(index, cut.groups)
        self.group = jax.lax.rem(index, cut.groups) if cut.groups > 1 else 0
        self._cache = {}

    def _once(self, name: tuple, make: Callable[[], Array]) -> Array:
        if name not in self._cache:
            self._cache[name] = make()
        return self._cache[name]

    def lanes(self, part: int, window: slice | None = None) -> pl.Slice:
        """Where the group, or a window of it, lies in an array of `part + 1` or more times the
        width.
        """
        size = self.cut.group_width
        window = window or slice(0, size)
        length = window.stop - window.start
        if isinstance(self.group, int):
            return pl.ds(part * size + window.start, length)
        return pl.ds(
            pl.multiple_of((part * self.cut.groups + self.group) * size, size) + window.start,
            length,
        )

    def load(self, ref, part: int, tokens: slice, window: slice | None = None) -> Array:
        """Rows of tokens, as the operand of a product."""

        def make() -> Array:
            x = ref[self.row, tokens, self.lanes(part, window)]
            # Rows that end within a packed register come as integers, which a product cannot take.
            whole = x.dtype == jnp.float32 or x.shape[0] % PACKED_ROWS == 0
            return x if whole else x.astype(jnp.float32).astype(x.dtype)

        name = ("load", id(ref), part, tokens.start, tokens.stop)
        return self._once(name if window is None else (*name, window.start, window.stop), make)

    def transposed(self, ref, part: int, tokens: slice) -> Array:
        """The group's channels by tokens."""
        name = ("transposed", id(ref), part, tokens.start, tokens.stop)
        return self._once(name, lambda: ref[self.row, tokens, self.lanes(part)].T)

    def columns(self, ref, part: int, unit: Unit) -> Array:
        """A unit's queries as columns of its window; in a head's columns the channels of others are
        zero.

        A product over the window is then one over the head: no lane moves, the matrix unit has them
        anyway.
        """

        def make() -> Array:
            window = self.cut.window(unit.heads)
            columns = []
            for segment in unit.segments:
                own = self.cut.channels(slice(segment.head, segment.head + 1))
                x = self.transposed(ref, part, slice(segment.start, segment.stop))[own]
                above, below = own.start - window.start, window.stop - own.stop
                columns.append(jnp.pad(x, ((above, below), (0, segment.columns - x.shape[1]))))
            return jnp.concatenate(columns, 1)

        return self._once(("columns", id(ref), part, unit.row), make)

    def scores(self, ref, part: int, keys: slice, columns: Array, unit: Unit) -> Array:
        """Products of keys (or values) and the unit's columns [keys, columns]."""
        return dot(self.load(ref, part, keys, self.cut.window(unit.heads)), columns, (1, 0))

    def masked(self, scores: Array, keys: slice) -> Array:
        """Scores, -inf where the key is not valid."""
        if self.bias_ref is None:
            return scores

        def make() -> Array:
            # The bias is a row vector in memory; the scores want it along sublanes.
            row = self.bias_ref[self.row, :, keys]
            return jnp.broadcast_to(row, (LANES, row.shape[1])).T

        column = self._once(("bias", keys.start), make)
        repeats = -(-scores.shape[1] // LANES)
        return scores + jnp.concatenate([column] * repeats, 1)[:, : scores.shape[1]]

    def weights(self, scores: Array, largest: Array) -> Array:
        """exp(logit - largest logit), which is exactly 1 where they are equal: scaled after they
        are subtracted.
        """
        return jnp.exp2(self.log_weights(scores, largest))

    def log_weights(self, scores: Array, largest: Array) -> Array:
        """The same before the exponential, of base 2."""
        return (scores - largest) * (self.cut.scale * LOG2E)
