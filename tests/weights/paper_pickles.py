"""Pickles in the layout of the paper's checkpoints, made of golden parameters."""

import dataclasses
import io
import json
import pathlib
import pickle
import sys
import types
from typing import Any

import cloudpickle
import jax
import jax.numpy as jnp
import numpy as np
import optax

REFERENCE = pathlib.Path(__file__).parents[1] / "golden" / "reference"
FLAGS = {
    "m3ae.model_type": "",
    "m3ae.num_heads": 4,
    "m3ae.dec_num_heads": 4,
    "data.image_size": 32,
    "data.image_normalization": "cc12m",
    "data.tokenizer_max_length": 12,
    "load_checkpoint": None,
}


class FrozenDict:
    """As flax's: pickled by a call with a plain dictionary."""

    def __init__(self, values):
        self._values = values

    def __reduce__(self):
        return FrozenDict, (self._values,)


@dataclasses.dataclass(frozen=True)
class M3AETrainState:
    """As the paper's: all fields are pickled, the optimizer's functions by value."""

    step: object = 0
    apply_fn: object = None
    params: object = None
    tx: object = None
    opt_state: object = None
    tokenizer_params: object = None


def libraries():
    """Modules that the paper's pickles name, for as long as one is made."""
    model, frozen = types.ModuleType("m3ae.model"), types.ModuleType("flax.core.frozen_dict")
    for module, kind in ((model, M3AETrainState), (frozen, FrozenDict)):
        kind.__module__ = module.__name__
        setattr(module, kind.__name__, kind)
    names = ("m3ae", "flax", "flax.core")
    return {name: types.ModuleType(name) for name in names} | {
        "m3ae.model": model,
        "flax.core.frozen_dict": frozen,
    }


def reference_parameters(name="params"):
    """The paper's parameters as a tree of dictionaries."""
    tree = {}
    for path, array in np.load(REFERENCE / f"{name}.npz").items():
        *folders, leaf = path.split("/")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[leaf] = array
    return tree


def paper_pickle(form="cloudpickle", *, parameters=None, flags=FLAGS):
    """Bytes of a checkpoint.

    Args:
        form: `cloudpickle` as the paper's code, or `frozen`, `device`, `main`, `plain`, `old`: with
            a FrozenDict, with arrays of a device, with a class of the program itself, with plain
            dictionaries, with an old protocol of pickle.
        parameters: A tree; default: the golden ones.
        flags: The training's.
    """
    parameters = {"params": parameters or reference_parameters()}
    if form == "device":
        parameters = jax.tree.map(jnp.asarray, parameters)
    moments = jax.tree.map(np.zeros_like, parameters)
    decay = optax.cosine_decay_schedule(1e-3, 100)
    state = M3AETrainState(
        step=np.int32(3),
        params=FrozenDict(parameters) if form == "frozen" else parameters,
        tx=optax.adamw(decay, mask=lambda tree: jax.tree.map(lambda leaf: leaf.ndim > 1, tree)),
        opt_state=optax.ScaleByAdamState(jnp.zeros(()), moments, moments),
    )
    content = {"step": np.int64(3), "epoch": 1, "variant": flags, "state": state}
    if form in ("plain", "old"):
        content["state"] = {"params": parameters}
        return pickle.dumps(content, 2 if form == "old" else pickle.HIGHEST_PROTOCOL)
    before = dict(sys.modules)
    sys.modules.update(libraries())
    if form == "main":
        own: Any = type("M3AETrainState", (), {"__module__": "__main__"})()
        own.__dict__.update(vars(state))
        content["state"] = own
    try:
        file = io.BytesIO()
        cloudpickle.dump(content, file)
    finally:
        sys.modules.clear()
        sys.modules.update(before)
    return file.getvalue()


def reference_config(name):
    """A golden case: its arrays and its settings."""
    arrays = dict(np.load(REFERENCE / f"{name}.npz"))
    return arrays, json.loads(str(arrays.pop("config")))
