"""Mechanisms that both Hopper attention kernels use: products, numbers of rows and columns,
copies.
"""

import math
from collections.abc import Callable
from typing import Any

import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ...dispatch import is_interpreted

TILE = 64
"""Rows of a tile: those of a warpgroup's matrix product."""
SWIZZLE_COLUMNS = 32
"""Numbers of a swizzled row; the contracted axis of a product is a multiple of it."""
SUM_COLUMNS = 8
"""Columns of the narrowest product: one with ones sums the rows of its other operand."""
LOG2_E = math.log2(math.e)
_LAYOUT = plgpu.Layout.WGMMA
_LONGEST_COPY = 256
"""Numbers that one asynchronous copy moves along an axis, at most."""


def operand(rows: int, columns: int, dtype: DTypeLike = jnp.bfloat16) -> Any:
    """Returns shared memory for an operand of products, of 16 bits a number."""
    return _shared(rows, columns, dtype, (8, SWIZZLE_COLUMNS))


def landing(rows: int, columns: int) -> Any:
    """Returns shared memory that asynchronous copies read and write, of bfloat16.

    Its tiles are single rows, so that arrays may have any number of them. Products cannot take it.
    """
    return _shared(rows, columns, jnp.bfloat16, (SWIZZLE_COLUMNS,))


def landing_and_operand(rows: int, columns: int, dtype: DTypeLike = jnp.bfloat16) -> Any:
    """Returns shared memory for an operand that `convert` makes in place of what was copied."""
    return plgpu.RefUnion(landing(rows, columns), operand(rows, columns, dtype))


def _shared(rows: int, columns: int, dtype: DTypeLike, tiling: tuple[int, ...]) -> Any:
    gpu: Any = plgpu  # Its transforms are abstract to a type checker.
    transforms = gpu.TilingTransform(tiling), gpu.SwizzleTransform(2 * SWIZZLE_COLUMNS)
    return plgpu.SMEM((rows, columns), dtype, transforms=transforms)


def vector(length: int) -> Any:
    """Returns shared memory for a float32 number of each token."""
    return plgpu.SMEM((length,), jnp.float32)


def tile(number) -> Any:
    """Returns the rows of a tile."""
    return pl.ds(number * TILE, TILE)


def past_end(start, length: int) -> Any:
    """Returns rows of GPU memory that may end past the array: zeros if read, dropped if written."""
    return pl.ds(start + lax.axis_index("batch") * 0, length)  # Static starts would be refused.


def zeros(columns: int) -> Float[Array, "64 columns"]:
    return plgpu.layout_cast(jnp.zeros((TILE, columns), jnp.float32), _LAYOUT)


def of_rows(x: Float[Array, "64"], columns: int) -> Float[Array, "64 columns"]:
    """Repeats a number of each row."""
    return lax.broadcast_in_dim(x, (TILE, columns), [0])


def of_columns(x: Float[Array, " columns"]) -> Float[Array, "64 columns"]:
    """Repeats a number of each column."""
    return lax.broadcast_in_dim(x, (TILE, x.shape[0]), [1])


def load_tile(ref) -> Array:
    """Loads a tile that was copied, [64, columns]."""
    return plgpu.load(ref, layout=_LAYOUT, optimized=False)


def load_rows(ref) -> Float[Array, "64"]:
    """Loads a number of each row from shared memory."""
    return plgpu.load(ref, layout=_LAYOUT.reduce(1))


def load_columns(ref) -> Float[Array, " columns"]:
    """Loads a number of each column from shared memory."""
    return plgpu.load(ref, layout=_LAYOUT.reduce(0))


def end_at(x: Float[Array, "64 columns"], count: int, value: float) -> Float[Array, "64 columns"]:
    """Replaces the columns from `count` on; the compiler leaves out what they are computed from."""
    columns = x.shape[1]
    if columns <= count:
        return x
    index = plgpu.broadcasted_iota(jnp.int32, (TILE, columns), 1, layout=_LAYOUT)
    return jnp.where(index < count, x, value)


def product(a, b) -> Float[Array, "64 columns"]:
    """Computes a @ b in float32 of operands in shared memory."""
    return products((a, b))[0]


def products(*operands: tuple[Any, Any]) -> tuple[Array, ...]:
    """Computes `product` of each pair, all at once."""

    def run(*accumulators):
        for accumulator, (a, b) in zip(accumulators, operands, strict=True):
            plgpu.wgmma(accumulator, a, b)
        plgpu.wgmma_wait(0)
        return tuple(accumulator[...] for accumulator in accumulators)

    shapes = [plgpu.WGMMAAccumulatorRef((TILE, b.shape[1]), jnp.float32) for _, b in operands]
    return pl.run_scoped(run, *shapes)


def added(*terms: tuple[Array, Array, Any]) -> tuple[Array, ...]:
    """Computes total + a @ b of each (total, a, b), where a is in registers, b in shared memory.

    If b has fewer rows than a has columns, it is repeated.
    """

    def pieces(a: Array, b) -> list[Array]:
        length = b.shape[0]
        return [a[:, start : start + length] for start in range(0, a.shape[1], length)]

    if is_interpreted():  # The interpreter takes no operand from registers, and no initial value.
        return tuple(
            sum((_interpreted_product(piece, b) for piece in pieces(a, b)), start=total)
            for total, a, b in terms
        )

    def run(accumulators):
        for accumulator, (_, a, b) in zip(accumulators, terms, strict=True):
            for piece in pieces(a, b):
                plgpu.wgmma(accumulator, piece, b)
        plgpu.wgmma_wait(0)

    initial: Any = tuple(plgpu.WGMMAAccumulatorRef.init(total) for total, _, _ in terms)
    return pl.run_state(run)(initial)


def ones_scratch(dtype: DTypeLike) -> Any:
    """Returns shared memory for the ones of `sums_of_rows`."""
    return operand(TILE, SWIZZLE_COLUMNS, dtype)  # Products read `SUM_COLUMNS` rows of it.


def fill_with_ones(ones) -> None:
    ones[...] = (zeros(ones.shape[1]) + 1).astype(ones.dtype)


def sums_of_rows(total: Float[Array, "64 8"], a: Array, ones) -> tuple[Array, Array, Any]:
    """Returns the arguments for which `added` adds the sum of each row of a to all columns of
    total.
    """
    return total, a, ones.at[pl.ds(0, SUM_COLUMNS)].T


def _interpreted_product(a: Array, b) -> Array:
    def run(stored):
        stored[...] = a
        plgpu.commit_smem()
        return product(stored, b)

    return pl.run_scoped(run, plgpu.SMEM(a.shape, a.dtype))


def store(x: Array, staged, destination) -> None:
    """Writes registers to GPU memory through shared memory; what lies past its end is dropped."""
    plgpu.wait_smem_to_gmem(0, wait_read_only=True)
    staged[...] = x
    plgpu.commit_smem()
    plgpu.copy_smem_to_gmem(staged, destination)


def copies(rows: int) -> int:
    """Returns the number of asynchronous copies that move so many rows."""
    return -(-rows // _LONGEST_COPY)


def start_copy(source, first, destination, barrier, lanes=None) -> None:
    """Starts `copies` of rows of [tokens, channels], or of a vector; those past its end become
    zeros.
    """
    rows = destination.shape[0]
    length = rows // copies(rows)  # Equal lengths share a descriptor.
    for start in range(0, rows, length):
        place = past_end(first + start, length)
        piece = source.at[place] if lanes is None else source.at[place, lanes]
        plgpu.copy_gmem_to_smem(piece, destination.at[pl.ds(start, length)], barrier)


def over_parts(tokens: int, longest: int, body: Callable, carry: Any) -> Any:
    """Returns `carry` after `body(first, length, is_last, carry)` of each part of the tokens.

    The last part is shorter and may end past the tokens, at a multiple of `SWIZZLE_COLUMNS`.
    A loop keeps the compiler from holding all parts' addresses in registers.
    """
    before = (tokens - 1) // longest
    if before:
        carry = lax.fori_loop(
            0, before, lambda part, carry: body(part * longest, longest, False, carry), carry
        )
    first = before * longest
    return body(first, _rounded_up(tokens - first), True, carry)


def parts(length: int, longest: int) -> list[tuple[int, int]]:
    """Cuts an axis into starts and lengths; the last may end past it, as in `over_parts`."""
    return [
        (start, min(longest, _rounded_up(length - start))) for start in range(0, length, longest)
    ]


def _rounded_up(length: int) -> int:
    return -(-length // SWIZZLE_COLUMNS) * SWIZZLE_COLUMNS
