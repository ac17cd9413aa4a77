"""Block sizes of the TPU kernels, looked up by chip and shape in `block_sizes.json`."""

import contextlib
import dataclasses
import functools
import importlib.resources
import json
from collections.abc import Iterator

import jax.numpy as jnp
from jax.typing import DTypeLike


@dataclasses.dataclass(frozen=True, kw_only=True)
class Blocks:
    """How a kernel cuts its work."""

    rows: int
    """Rows of the batch per program, at most."""
    unroll: int
    """Groups of heads per trip of the loop, at most."""
    lags: tuple[int, ...]
    """Units between each stage of the work and the next: two forward, three backward."""
    query_tile: int
    """Queries per unit: the columns of a matrix unit, or half of them."""
    key_tile: int
    """Keys per unit: the rows of a matrix unit, or half of them."""
    vmem_limit_bytes: int


CHIPS = {"v4": "TPU v4", "v5e": "TPU v5 lite", "v5p": "TPU v5", "v6e": "TPU v6 lite"}
"""Names in the table, and the `device_kind` of each."""


@functools.cache
def table() -> list[dict]:
    """Returns the rows of `block_sizes.json`; the first that fits counts, `null` fits all."""
    return json.loads(
        importlib.resources.files(__package__).joinpath("block_sizes.json").read_text()
    )


_CHOSEN: dict[str, Blocks] = {}


@contextlib.contextmanager
def override_blocks(kernel: str, blocks: Blocks) -> Iterator[None]:
    """Has programs that are lowered meanwhile take these block sizes for a kernel, whatever the
    table says.
    """
    _CHOSEN[kernel] = blocks
    try:
        yield
    finally:
        del _CHOSEN[kernel]


def blocks_for(kernel: str, device_kind: str | None, tokens: int, dtype: DTypeLike) -> Blocks:
    """Returns the block sizes of a kernel for a chip and a shape.

    Raises:
        NotImplementedError: the kernel does not fit into the chip.
    """
    if kernel in _CHOSEN:
        return _CHOSEN[kernel]
    chip = {kind: chip for chip, kind in CHIPS.items()}.get(device_kind or "")
    for row in table():
        if (
            row["kernel"] in (None, kernel)
            and row["chip"] in (None, chip)
            and row["dtype"] in (None, jnp.dtype(dtype).name)
            and tokens <= row["max_tokens"]
        ):
            if row["blocks"] is None:
                raise NotImplementedError(f"{kernel} of {tokens} tokens, {dtype}: {row['source']}")
            return Blocks(**row["blocks"] | {"lags": tuple(row["blocks"]["lags"])})
    raise LookupError(f"block_sizes.json has no row for {kernel} of {tokens} tokens, {dtype}.")
