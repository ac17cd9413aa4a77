"""Layer-wise decay: the lower a layer, the smaller its updates (Clark et al. 2020, He et al. 2022).

| parameters | factor, for L blocks |
| --- | --- |
| embeddings, class token, type and position codes | decay^(L + 1) |
| block i, counted from 0 | decay^(L - i) |
| final norm, norm of the mean, head | 1 |

It multiplies finished updates, weight decay included, as the parameter groups of MAE's code do.
"""

import jax
import numpy as np
import optax
from jaxtyping import Float32, PyTree

_BLOCKS, _TOP = "m3ae.encoder.blocks.", ("m3ae.encoder.norm.", "norm.", "class_head.")


def layer_factor(
    name: str, shape: tuple[int, ...], decay: float, num_layers: int
) -> Float32[np.ndarray, "..."]:
    """Returns the factor of a parameter of a `Classifier`, in a shape that broadcasts to its own.

    Args:
        name: Dotted.
        shape: The parameter's; the blocks of the encoder are stacked.
        decay: Factor from each layer to the one below it.
        num_layers: Blocks.
    """
    if name.startswith(_BLOCKS):
        layers = decay ** np.arange(num_layers, 0, -1)
        return layers.astype(np.float32).reshape(-1, *[1] * (len(shape) - 1))
    exponent = 0 if name.startswith(_TOP) else num_layers + 1
    return np.full([1] * len(shape), decay**exponent, np.float32)


def scale_by_layer(decay: float, num_layers: int) -> optax.GradientTransformation:
    """Returns the transformation that multiplies the updates of a `Classifier` by their factors."""

    def scaled(path, update):
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        factor = layer_factor(name, update.shape, decay, num_layers)
        return update * factor.astype(update.dtype)

    def update(updates: PyTree, parameters: PyTree) -> PyTree:
        return jax.tree_util.tree_map_with_path(scaled, updates)

    return optax.stateless(update)
