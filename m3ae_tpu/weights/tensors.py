"""Tensors of a file by name, each read when it is asked for: a file may be larger than memory."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from m3ae_tpu.errors import UserError

_FLOATS = {"float16", "bfloat16", "float32", "float64"}


class StoredTensor(NamedTuple):
    """A tensor in a file."""

    shape: tuple[int, ...]
    dtype: str
    """Name of its numbers' type."""
    read: Callable[[], np.ndarray]
    """Reads its values."""


class Tensors(Mapping[str, np.ndarray]):
    """Tensors by name; a value is read from its file each time, as float32."""

    def __init__(self, stored: Mapping[str, StoredTensor]):
        """Takes the tensors of one model, maybe of several files."""
        self.stored = dict(stored)

    def __iter__(self) -> Iterator[str]:
        return iter(self.stored)

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, name: str) -> np.ndarray:
        """Reads a tensor.

        Raises:
            UserError: it does not hold floating-point numbers.
        """
        tensor = self.stored[name]
        if tensor.dtype not in _FLOATS:
            raise UserError(
                f"{name} holds numbers of type {tensor.dtype}. "
                "Import the weights before they were quantised: float32, float16 or bfloat16."
            )
        return np.asarray(tensor.read(), np.float32)

    def shape(self, name: str) -> tuple[int, ...]:
        """Returns the shape of a tensor without reading it."""
        return self.stored[name].shape


def in_memory(arrays: Mapping[str, np.ndarray]) -> Tensors:
    """Returns arrays that are in memory already as tensors."""
    return Tensors(
        {
            name: StoredTensor(array.shape, array.dtype.name, lambda array=array: array)
            for name, array in arrays.items()
        }
    )
