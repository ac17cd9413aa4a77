"""Tensors of a source matched with our parameters: every name of both sides is accounted for."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple

import jax
import numpy as np

from m3ae_tpu.config import ModelConfig
from m3ae_tpu.errors import UserError, require
from m3ae_tpu.model.m3ae import M3AE
from m3ae_tpu.weights.parameters import (
    CLS_POSITION,
    MATRIX,
    PATCHES,
    POSITIONS,
    QKV_MATRIX,
    SAME,
    TOKEN,
    Arrays,
    Layout,
    Parameter,
    names_in,
    to_ours,
)
from m3ae_tpu.weights.tensors import Tensors

type Fate = Literal["matched", "converted", "dropped", "missing"]

ABSENT = np.float32(-0.0)
"""Value of parameters that a source does not have: x + -0.0 is x, also where x is 0.0 or -0.0. By
its sign an export knows them from zeros that the source does have."""
_CONVERSIONS: dict[Layout, str] = {
    TOKEN: "axes of length 1 removed",
    MATRIX: "transposed",
    PATCHES: "convolution to matrix",
    QKV_MATRIX: "transposed, split in queries, keys, values",
    CLS_POSITION: "first row",
    POSITIONS: "rows of the patches",
}


class Line(NamedTuple):
    """The fate of some tensors of the source, or of a parameter of ours."""

    fate: Fate
    theirs: str
    """Name in the source; `*` for the number of a block; empty for what it lacks."""
    ours: str
    """Name in our model; empty for what is dropped."""
    remark: str


class Matched(NamedTuple):
    """The parameters that a source gives."""

    arrays: Arrays
    """Ours by dotted name, float32."""
    lines: list[Line]


def match(
    tensors: Tensors,
    parameters: Sequence[Parameter],
    config: ModelConfig,
    *,
    dropped: Mapping[str, str],
    absent: Mapping[str, str],
    reasons: Mapping[str, str],
    folded: Mapping[str, str] | None = None,
) -> Matched:
    """Makes all parameters of a model of a source's tensors.

    Args:
        tensors: The source's.
        parameters: The table of those that it has.
        config: The model, with the source's sizes.
        dropped: Why tensors have no place with us, by a regular expression of their names' start.
        absent: Why parameters that the source does not have are zero, by their names.
        reasons: Why a model with some tensors cannot be imported, likewise by their names' start.
        folded: Parameters that other tensors, named likewise, are multiplied into; by the caller.

    Raises:
        UserError: a tensor is missing, has no place, does not fit the model's sizes, or holds
            numbers that are not finite.
    """
    ours = _our_shapes(config)
    depths = {"encoder": config.encoder.num_layers, "decoder": config.decoder.num_layers}
    wanted: dict[str, tuple[int, ...]] = {}
    for parameter in parameters:
        for name, shape in _their_shapes(parameter, ours[parameter.ours], depths).items():
            wanted[name] = _joined(wanted[name], shape) if name in wanted else shape
    folded = folded or {}
    _require_all(tensors, wanted, [*dropped, *folded], reasons)
    arrays = to_ours(tensors, parameters, depths)
    broken = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    require(
        not broken,
        f"The source holds numbers that are not finite, in our {some(broken)}. "
        "Take an earlier checkpoint of that training, or copy the file again.",
    )
    lines = [_line_of(parameter, ours[parameter.ours]) for parameter in parameters]
    for pattern, name in folded.items():
        lines += [
            Line("converted", found, name, "multiplied in") for found in _found(tensors, pattern)
        ]
    for pattern, reason in dropped.items():
        lines += [Line("dropped", found, "", reason) for found in _found(tensors, pattern)]
    for name, reason in absent.items():
        arrays[name] = np.full(ours[name], ABSENT)
        lines.append(Line("missing", "", name, reason))
    left = sorted(ours.keys() ^ arrays.keys())
    assert not left, f"a reader leaves {left} without values"
    return Matched(arrays, lines)


def count_blocks(names: Iterable[str], stack: str) -> int:
    """Returns how many blocks a stack has.

    Args:
        names: All of the source.
        stack: Beginning of the blocks' names, before their number.
    """
    # A name with a larger number is one that no part of our model is made of.
    found = (re.match(rf"{re.escape(stack)}([0-9]{{1,3}})[./]", name) for name in names)
    return max((int(number[1]) + 1 for number in found if number), default=0)


def require_some(tensors: Tensors, num_axes: Mapping[str, int]) -> None:
    """Checks the tensors that tell a model's sizes, before `match` can check them all.

    Args:
        tensors: The source's.
        num_axes: The number of axes of each, by name.

    Raises:
        UserError: one is missing, or has another number of axes.
    """
    missing = [name for name in num_axes if name not in tensors]
    require(
        not missing,
        f"The source lacks {some(missing)}, as every such model has. Half a model is not imported: "
        "name the whole file, or another --format.",
    )
    for name, number in num_axes.items():
        require(
            len(tensors.shape(name)) == number,
            f"{name} is {list(tensors.shape(name))} in the source, and {number} axes are expected. "
            "Another kind of model, or another --format?",
        )


def some(names: Sequence[str], limit: int = 3) -> str:
    """Returns a list of names for a message, cut after a few."""
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _our_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    shapes = jax.eval_shape(lambda: M3AE(config, key=jax.random.key(0)))
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
    }


def _their_shapes(
    parameter: Parameter, shape: tuple[int, ...], depths: Mapping[str, int]
) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the tensors that hold a parameter, by name."""
    # Without memory: all places show the same number.
    one = np.broadcast_to(np.float32(0), shape[1:] if parameter.is_stacked else shape)
    part = one if len(parameter.theirs) == 1 else one[..., 0, :]
    theirs = parameter.layout.to_theirs(part).shape
    num_layers = depths[parameter.ours.partition(".")[0]] if parameter.is_stacked else 1
    return {name: theirs for layer in range(num_layers) for name in names_in(parameter, layer)}


def _joined(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[int, ...]:
    return (first[0], first[1] + second[1], *first[2:])


def _require_all(
    tensors: Tensors,
    wanted: Mapping[str, tuple[int, ...]],
    placed: Sequence[str],
    reasons: Mapping[str, str],
) -> None:
    unknown = [
        name
        for name in tensors
        if name not in wanted and not any(re.match(pattern, name) for pattern in placed)
    ]
    for pattern, reason in reasons.items():
        named = [name for name in unknown if re.match(pattern, name)]
        require(not named, f"The source holds {some(named)}: {reason}.")
    missing = [name for name in wanted if name not in tensors]
    require(
        not missing,
        f"The source lacks {some(missing)} of the {len(wanted)} tensors of such a model. "
        "Half a model is not imported: name the whole file, or another --format.",
    )
    require(
        not unknown,
        f"The source holds {some(unknown)}, which no part of our model is made of. "
        "Another kind of model, or another --format?",
    )
    for name, shape in wanted.items():
        if tensors.shape(name) != shape:
            raise UserError(
                f"{name} is {list(tensors.shape(name))} in the source, and its sizes ask for "
                f"{list(shape)}. Name the config.json that belongs to the file."
            )


def _line_of(parameter: Parameter, shape: tuple[int, ...]) -> Line:
    steps = []
    if parameter.layout != SAME:
        steps.append(_CONVERSIONS.get(parameter.layout, "split in queries, keys, values"))
    if len(parameter.theirs) > 1:
        steps.append("joined")
    if parameter.is_stacked:
        steps.append(f"{shape[0]} blocks stacked")
    theirs = ", ".join(name.replace("{layer}", "*") for name in parameter.theirs)
    is_same = parameter.layout == SAME and len(parameter.theirs) == 1
    return Line("matched" if is_same else "converted", theirs, parameter.ours, ", ".join(steps))


def _found(names: Iterable[str], pattern: str) -> list[str]:
    """Returns the names that a pattern matches, with `*` for the number of a block."""
    found = (name for name in names if re.match(pattern, name))
    return sorted({re.sub(r"([._])\d+([./])", r"\1*\2", name) for name in found})
