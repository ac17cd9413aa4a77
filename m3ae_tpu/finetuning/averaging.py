"""A running average of the weights, kept in the optimizer's state, so that checkpoints hold it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, PyTree


class AverageState(NamedTuple):
    """The average and what it needs."""

    count: Int[Array, ""]
    """int32, updates so far."""
    average: PyTree
    """As the parameters."""


def average_weights(decay: float) -> optax.GradientTransformation:
    """Returns a transformation that leaves updates as they are, and averages what comes of them.

    It must be the last. The average begins at the initial weights; over the first updates it
    forgets them faster: update n decays by min(decay, (1 + n) / (10 + n)).
    """

    # Optax calls them by these names.
    def init(params: PyTree) -> AverageState:
        # Copies: parameters and average are donated to the step apart.
        return AverageState(jnp.zeros((), jnp.int32), jax.tree.map(jnp.copy, params))

    def update(updates: PyTree, state: Any, params: Any = None) -> tuple[PyTree, AverageState]:
        count = state.count.astype(jnp.float32)
        kept = jnp.minimum(jnp.float32(decay), (1 + count) / (10 + count))
        new = optax.apply_updates(params, updates)
        average = jax.tree.map(
            lambda old, value: old + (1 - kept).astype(old.dtype) * (value - old),
            state.average,
            new,
        )
        return updates, AverageState(state.count + 1, average)

    return optax.GradientTransformation(init, update)


def average_of(optimizer_state: PyTree) -> PyTree | None:
    """Returns the average in an optimizer's state; None if it keeps none."""
    return optax.tree.get(optimizer_state, "average")
