"""Tables of parameters: our names beside those of another library, converted both ways.

Reading and writing take the same tables. Kernels of ours are [inputs, outputs] and blocks are
stacked; other libraries keep one tensor a block, [outputs, inputs].
"""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

type Arrays = dict[str, np.ndarray]
"""Arrays by the dotted names of a format."""


class Layout(NamedTuple):
    """The order of an array's values in another library, as conversions of one array."""

    to_theirs: Callable[[np.ndarray], np.ndarray]
    to_ours: Callable[[np.ndarray], np.ndarray]


def _split_patches(kernel: np.ndarray) -> np.ndarray:
    side = round((kernel.shape[0] // 3) ** 0.5)
    return kernel.reshape(side, side, 3, -1).transpose(3, 2, 0, 1)


def _join_patches(weight: np.ndarray) -> np.ndarray:
    return weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0])


def _split_qkv(weight: np.ndarray) -> np.ndarray:
    return weight.T.reshape(weight.shape[1], 3, -1)


SAME = Layout(lambda ours: ours, lambda theirs: theirs)
"""A vector."""
TOKEN = Layout(lambda ours: ours[None, None], lambda theirs: theirs[0, 0])
"""Ours [width], theirs [1, 1, width]."""
MATRIX = Layout(lambda ours: ours.T, lambda theirs: theirs.T)
"""Ours [inputs, outputs], theirs [outputs, inputs]."""
PATCHES = Layout(_split_patches, _join_patches)
"""Ours [side * side * 3, width], theirs a convolution [width, 3, side, side]."""
QKV_MATRIX = Layout(lambda ours: ours.reshape(ours.shape[0], -1).T, _split_qkv)
"""Ours [inputs, 3, width], theirs [3 * width, inputs]."""
QKV_BIAS = Layout(lambda ours: ours.reshape(-1), lambda theirs: theirs.reshape(3, -1))
"""Ours [3, width], theirs [3 * width]."""
CLS_POSITION = Layout(lambda ours: ours[None, None], lambda theirs: theirs[0, 0])
"""Ours [width], theirs the first row of a table [1, 1 + patches, width]."""
POSITIONS = Layout(lambda ours: ours[None], lambda theirs: theirs[0, 1:])
"""Ours [patches, width], theirs the other rows of that table."""


class Parameter(NamedTuple):
    """A parameter of ours, and the tensors in which another library keeps it."""

    ours: str
    """Dotted name; `encoder.blocks.` and `decoder.blocks.` are stacks, see `theirs`."""
    theirs: tuple[str, ...]
    """The name of its tensor, or three: of queries, keys and values, which ours has on its last
    axis but one. In a stack's, `{layer}` stands for the number of the block. Parameters that name
    the same tensor lie in it one behind the other, on its second axis."""
    layout: Layout

    @property
    def is_stacked(self) -> bool:
        return "{layer}" in self.theirs[0]


def to_theirs(arrays: Mapping[str, np.ndarray], parameters: Iterable[Parameter]) -> Arrays:
    """Returns the tensors of another library, each C-contiguous, made of our arrays.

    Args:
        arrays: Ours; stacks have a leading axis of layers.
        parameters: The table. All of its parameters are in `arrays`.
    """
    parts: dict[str, list[np.ndarray]] = {}
    for parameter in parameters:
        array = arrays[parameter.ours]
        for layer, values in enumerate(array if parameter.is_stacked else [array]):
            for name, part in _one_to_theirs(values, parameter, layer).items():
                parts.setdefault(name, []).append(part)
    # safetensors writes the bytes of a transposed array in the wrong order, without a word.
    return {
        name: np.ascontiguousarray(each[0] if len(each) == 1 else np.concatenate(each, axis=1))
        for name, each in parts.items()
    }


def to_ours(
    tensors: Mapping[str, np.ndarray],
    parameters: Iterable[Parameter],
    num_layers: Mapping[str, int],
) -> Arrays:
    """Returns our arrays made of another library's tensors: the inverse of `to_theirs`.

    Args:
        tensors: Theirs.
        parameters: The table. All of its tensors are in `tensors`.
        num_layers: Blocks of the stacks `encoder` and `decoder`, as far as they are in the table.
    """
    arrays: Arrays = {}
    for parameter in parameters:
        if parameter.is_stacked:
            layers = range(num_layers[parameter.ours.partition(".")[0]])
            arrays[parameter.ours] = np.stack(
                [_one_to_ours(tensors, parameter, layer) for layer in layers]
            )
        else:
            arrays[parameter.ours] = np.ascontiguousarray(_one_to_ours(tensors, parameter, 0))
    return arrays


def names_in(parameter: Parameter, layer: int = 0) -> tuple[str, ...]:
    """Returns the names of a parameter's tensors, of one block where it is stacked."""
    return tuple(name.format(layer=layer) for name in parameter.theirs)


def _one_to_theirs(array: np.ndarray, parameter: Parameter, layer: int) -> Arrays:
    names = names_in(parameter, layer)
    parts = [array] if len(names) == 1 else [array[..., part, :] for part in range(3)]
    return {name: parameter.layout.to_theirs(part) for name, part in zip(names, parts, strict=True)}


def _one_to_ours(tensors: Mapping[str, np.ndarray], parameter: Parameter, layer: int) -> np.ndarray:
    parts = [parameter.layout.to_ours(tensors[name]) for name in names_in(parameter, layer)]
    return parts[0] if len(parts) == 1 else np.stack(parts, axis=-2)
