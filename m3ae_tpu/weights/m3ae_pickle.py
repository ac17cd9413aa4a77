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
_DEPTH = 16
"""Dictionaries in dictionaries that a tree of parameters may have."""


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
    flags, step = data.get("variant"), array_of(data.get("step"))
    if isinstance(data.get("step"), int):
        step = np.asarray(data["step"])
    return PaperCheckpoint(
        parameters=_flat(tree, str(path)),
        flags=_flat_flags(flags) if isinstance(flags, dict) else {},
        step=int(step) if step is not None and step.size == 1 else 0,
    )


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
        inner = (
            {f"{name}.{key}": one for key, one in value.items()} if isinstance(value, dict) else {}
        )
        flat |= inner or {str(name): value}
    return flat


def _flat(tree: dict[Any, Any], path: str) -> dict[str, np.ndarray]:
    flat: dict[str, np.ndarray] = {}
    pending: list[tuple[str, Any, int]] = [("", tree, 0)]
    while pending:
        name, value, depth = pending.pop()
        if isinstance(value, dict) and depth < _DEPTH:
            for key, child in value.items():
                pending.append((f"{name}/{key}" if name else str(key), child, depth + 1))
            continue
        array = array_of(value)
        if array is None:
            raise UserError(
                f"{path} holds {name[:100]}, which is not an array. Take the file from its authors."
            )
        flat[name] = array
    return dict(sorted(flat.items()))
