"""Mechanisms that both Hopper attention kernels use: products, numbers of rows and columns,
copies.
"""

import math
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
LOG2_E = math.log2(math.e)
_LAYOUT = plgpu.Layout.WGMMA
_LONGEST_COPY = 256
"""Numbers that one asynchronous copy moves along an axis, at most."""


def block(rows: int, columns: int, dtype: DTypeLike = jnp.bfloat16) -> Any:
    """Returns shared memory for operands of products, of 16 bits a number."""
    gpu: Any = plgpu  # Its transforms are abstract to a type checker.
    tiling, swizzle = (8, SWIZZLE_COLUMNS), 2 * SWIZZLE_COLUMNS
    transforms = gpu.TilingTransform(tiling), gpu.SwizzleTransform(swizzle)
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


def load_tile(ref) -> Float[Array, "64 columns"]:
    """Loads a tile of an operand from shared memory, as float32."""
    return plgpu.load(ref, layout=_LAYOUT).astype(jnp.float32)


def load_rows(ref) -> Float[Array, "64"]:
    """Loads a number of each row from shared memory."""
    return plgpu.load(ref, layout=_LAYOUT.reduce(1))


def load_columns(ref) -> Float[Array, " columns"]:
    """Loads a number of each column from shared memory."""
    return plgpu.load(ref, layout=_LAYOUT.reduce(0))


def index(columns: int, axis: int) -> Array:
    """Returns each element's row (axis 0) or column (axis 1) in a tile."""
    return plgpu.broadcasted_iota(jnp.int32, (TILE, columns), axis, layout=_LAYOUT)


def product(a, b) -> Float[Array, "64 columns"]:
    """Computes a @ b in float32 of operands in shared memory."""

    def run(accumulator):
        plgpu.wgmma(accumulator, a, b)
        plgpu.wgmma_wait(0)
        return accumulator[...]

    return pl.run_scoped(run, plgpu.WGMMAAccumulatorRef((TILE, b.shape[1]), jnp.float32))


def added(total: Float[Array, "64 columns"], a: Array, b) -> Float[Array, "64 columns"]:
    """Computes total + a @ b, where a is in registers and b in shared memory."""
    if is_interpreted():  # The interpreter takes no operand from registers, and no initial value.
        return total + _interpreted_product(a, b)

    def run(accumulator):
        plgpu.wgmma(accumulator, a, b)
        plgpu.wgmma_wait(0)

    initial: Any = plgpu.WGMMAAccumulatorRef.init(total)
    return pl.run_state(run)(initial)


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


def start_copy(source, rows: int, lanes, destination, barrier) -> None:
    """Starts to copy the first rows of [tokens, channels]; those past its end become zeros."""
    plgpu.copy_gmem_to_smem(source.at[past_end(0, rows), lanes], destination, barrier)


def copy_vector(source, destination, barrier) -> None:
    """Copies a vector, piece by piece."""
    length = destination.shape[0]
    for start in range(0, length, _LONGEST_COPY):
        piece = pl.ds(start, min(_LONGEST_COPY, length - start))
        plgpu.copy_gmem_to_smem(source.at[piece], destination.at[piece], barrier)
        plgpu.barrier_wait(barrier)


def parts(length: int, longest: int, multiple: int) -> list[tuple[int, int]]:
    """Cuts an axis into starts and lengths; the last may end past it, at a multiple."""
    return [
        (start, min(longest, -(-(length - start) // multiple) * multiple))
        for start in range(0, length, longest)
    ]
