"""Block sizes of the TPU kernels, looked up by chip and shape in `block_sizes.json`."""

import contextlib
import dataclasses
import functools
import importlib.resources
import json
from collections.abc import Iterator

import jax.numpy as jnp
from jax.typing import DTypeLike

from ..chips import chip_name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blocks:
    """Sizes of the pieces in which a kernel does its work."""

    rows: int
    """Rows of the batch per program of the grid, at most."""
    unroll: int
    """Head groups per iteration of the kernel's loop, at most."""
    stage_offsets: tuple[int, ...]
    """Tasks between each stage and the next in the software pipeline: two forward, three
    backward.
    """
    query_tile: int
    """Queries per task: the columns of a matrix unit, or half of them."""
    key_tile: int
    """Keys per task: the rows of a matrix unit, or half of them."""
    vmem_limit_bytes: int


@functools.cache
def table() -> list[dict]:
    """Returns the rows of `block_sizes.json`; the first match applies, `null` matches anything."""
    return json.loads(
        importlib.resources.files(__package__).joinpath("block_sizes.json").read_text()
    )


_OVERRIDES: dict[str, Blocks] = {}


@contextlib.contextmanager
def override_blocks(kernel: str, blocks: Blocks) -> Iterator[None]:
    """Overrides the table's block sizes of `kernel` for programs traced inside the `with` block."""
    _OVERRIDES[kernel] = blocks
    try:
        yield
    finally:
        del _OVERRIDES[kernel]


def blocks_for(kernel: str, device_kind: str | None, tokens: int, dtype: DTypeLike) -> Blocks:
    """Returns the block sizes of a kernel for a chip and a shape.

    Args:
        kernel: "attention_forward" or "attention_backward".
        device_kind: As JAX names the chip; the sizes of an unknown one, or of None, are v5e's.
        tokens: Tokens of a row.
        dtype: Dtype of the arrays.

    Raises:
        NotImplementedError: the kernel does not fit into the chip.
    """
    if kernel in _OVERRIDES:
        return _OVERRIDES[kernel]
    chip = chip_name(device_kind)
    for row in table():
        if (
            row["kernel"] in (None, kernel)
            and row["chip"] in (None, chip)
            and row["dtype"] in (None, jnp.dtype(dtype).name)
            and tokens <= row["max_tokens"]
        ):
            if row["blocks"] is None:
                raise NotImplementedError(f"{kernel} of {tokens} tokens, {dtype}: {row['source']}")
            offsets = tuple(row["blocks"]["stage_offsets"])
            return Blocks(**row["blocks"] | {"stage_offsets": offsets})
    raise LookupError(f"block_sizes.json has no row for {kernel} of {tokens} tokens, {dtype}.")
