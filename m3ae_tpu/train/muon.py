"""Muon: updates of matrices are their momentum, made orthogonal (Jordan et al. 2024).

https://kellerjordan.github.io/posts/muon; Liu et al. 2025, arXiv 2502.16982.
"""

import jax
import optax
from jaxtyping import Array, PyTree
from optax.contrib import MuonDimensionNumbers

RMS = 0.4
"""Root mean square of an update's values before the learning rate. AdamW's is near 0.2, the value
of Liu et al. 2025, §2.2; twice that came out ahead in a few short runs (docs/results/starter.md).
"""


def muon_for_matrices(others: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns Muon for the matrices within the network, and another optimizer for all the rest.

    Momentum 0.95 with Nesterov's look-ahead, five iterations of Newton-Schulz. Queries, keys and
    values are three matrices of their own.

    Args:
        others: For vectors, and for what embeds tokens or predicts them.
    """
    # `optax.contrib.muon` has an AdamW of its own: with look-ahead, and decay of vectors too.
    muon = optax.chain(
        optax.contrib.scale_by_muon(weight_dimension_numbers=_dimensions),
        optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(_scaled, updates)),
    )
    return optax.partition({"muon": muon, "others": others}, _labels)


def _labels(parameters: PyTree) -> PyTree:
    def label(path, _) -> str:
        is_inner = any(key.name in ("blocks", "decoder_input") for key in path)
        return "muon" if is_inner and path[-1].name == "kernel" else "others"

    return jax.tree_util.tree_map_with_path(label, parameters)


def _dimensions(parameters: PyTree) -> PyTree:
    def dimensions(path, _) -> MuonDimensionNumbers:
        return MuonDimensionNumbers(*_axes(path))

    return jax.tree_util.tree_map_with_path(dimensions, parameters)


def _axes(path) -> tuple[int, int]:
    """Returns a matrix's axes of inputs and outputs; `attention_in` has three parts between."""
    return -3 if path[-2].name == "attention_in" else -2, -1


def _scaled(path, update: Array) -> Array:
    longest = max(update.shape[axis] for axis in _axes(path))
    return update * (RMS * longest**0.5)
