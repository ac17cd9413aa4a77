"""The paper's checkpoints: parameters and flags in a pickle of the training's whole state.

The state drags in optax's functions as code objects. None of it is loaded: see `safe_pickle`.
"""

import pathlib
from typing import Any, NamedTuple

import numpy as np

from m3ae_tpu.errors import UserError, require
from m3ae_tpu.weights.safe_pickle import (
    NUMPY_NAMES,
    DeviceArray,
    Dictionary,
    Fields,
    Inert,
    MadeClass,
    array_of,
    load_pickle,
)

_INERT_PACKAGES = {
    *("m3ae", "mae", "flax", "optax", "chex", "cloudpickle", "ml_collections", "jax", "jaxlib"),
    *("abc", "collections", "dataclasses", "enum", "functools", "_functools", "itertools"),
    *("operator", "_operator", "types", "typing"),
}
"""Libraries of the paper's code, never imported here: releases move names between modules. Their
functions are pickled with what they name of the standard library."""
_INERT_NAMES = {
    "builtins": {"object", "type", "str", "bytes", "bool", "int", "float", "complex"}
    | {"tuple", "list", "dict", "set", "frozenset"},
    "numpy": {"generic", "number", "integer", "floating", "bool", "bool_"}
    | {"float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint32"},
}
_STATES = {"M3AETrainState", "TrainState"}
_DEPTH, _MAX_VALUES, _MAX_NAME = 16, 100_000, 200
"""Dictionaries in dictionaries that a tree of parameters may have, values, characters of a key.
A small pickle may hold one dictionary in many places."""


class PaperCheckpoint(NamedTuple):
    """The part of a checkpoint that counts."""

    parameters: dict[str, np.ndarray]
    """By their path: `encoder/Block_0/LayerNorm_0/scale`."""
    flags: dict[str, Any]
    """The training's flags by name, such as `m3ae.model_type`."""
    step: int
    """Steps of the training; 0 if unknown."""


def read_paper_pickle(path: pathlib.Path) -> PaperCheckpoint:
    """Reads parameters and flags; the optimizer's state is dropped.

    Memory: about the size of the file.

    Raises:
        UserError: the file is another kind of file, is damaged, or names anything else.
    """
    with path.open("rb") as file:
        data = load_pickle(file, str(path), find=_find)
    tree = _tree_of(data)
    require(
        isinstance(tree, dict) and bool(tree),
        f"{path} is a pickle without state.params, where the paper's code keeps parameters. "
        "Name a checkpoint of that code, such as model.pkl.",
    )
    assert isinstance(data, dict)
    flags = data.get("variant")
    return PaperCheckpoint(
        parameters=_flat(tree, str(path)),
        flags=_flat_flags(flags) if isinstance(flags, dict) else {},
        step=_step_of(data.get("step")),
    )


def _step_of(value: Any) -> int:
    """Returns a number of steps that was saved as a number or an array; 0 for anything else."""
    array = array_of(value)
    if array is not None and array.size == 1 and array.dtype.kind in "iu":
        value = array.item()
    return value if type(value) is int and 0 <= value < 2**63 else 0


def _find(module: str, name: str) -> type | None:
    package = module.partition(".")[0]
    full = f"{module}.{name}"
    if full in NUMPY_NAMES:
        return NUMPY_NAMES[full]
    if package == "jax" and name in ("_reconstruct_array", "reconstruct_device_array"):
        return DeviceArray
    if package == "flax" and name == "FrozenDict":
        return Dictionary
    if name in _STATES:
        return Fields
    # A class of the training's own program is in the pickle itself.
    if package == "cloudpickle" and name.startswith("_make_skeleton"):
        return MadeClass
    return Inert if package in _INERT_PACKAGES or name in _INERT_NAMES.get(module, ()) else None


def _tree_of(data: Any) -> Any:
    """Returns the tree of parameters in what the pickle holds, or None."""
    state = data.get("state") if isinstance(data, dict) else None
    fields = state.fields if isinstance(state, Fields) else state
    tree = fields.get("params") if isinstance(fields, dict) else None
    # The model's variables are a dictionary with one collection, `params`.
    return tree["params"] if isinstance(tree, dict) and tree.keys() == {"params"} else tree


def _flat_flags(flags: dict[Any, Any]) -> dict[str, Any]:
    """Returns flags by dotted name; groups of them may be dictionaries."""
    flat: dict[str, Any] = {}
    for name, value in flags.items():
        if _is_name(name) and isinstance(value, dict):
            flat |= {f"{name}.{key}": one for key, one in value.items() if _is_name(key)}
        elif _is_name(name):
            flat[name] = value
    return flat


def _is_name(key: Any) -> bool:
    return isinstance(key, str) and len(key) <= _MAX_NAME


def _flat(tree: dict[Any, Any], path: str) -> dict[str, np.ndarray]:
    flat: dict[str, np.ndarray] = {}
    pending: list[tuple[str, Any, int]] = [("", tree, 0)]
    num_values = 1
    while pending:
        name, value, depth = pending.pop()
        if isinstance(value, dict) and depth < _DEPTH:
            num_values += len(value)
            require(
                num_values <= _MAX_VALUES and all(map(_is_name, value)),
                f"{path} holds parameters as no checkpoint of the paper's code does: too many, or "
                "under keys that are not names. Take the file from its authors.",
            )
            for key, child in value.items():
                pending.append((f"{name}/{key}" if name else key, child, depth + 1))
            continue
        array = array_of(value)
        if array is None:
            raise UserError(
                f"{path} holds {name[:100]}, which is not an array. Take the file from its authors."
            )
        flat[name] = array
    return dict(sorted(flat.items()))
