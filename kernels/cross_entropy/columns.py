"""Facts about each token that columns of the vocabulary tell, and the scores that follow."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

ELSEWHERE = -(2**30)
"""Place of a true id among the columns of a device that does not hold it."""


class Columns(NamedTuple):
    """Facts about each token's logits in the columns that a device holds."""

    logsumexp: Float[Array, " tokens"]
    true: Float[Array, " tokens"]
    """Logit of the true id; 0 where another device holds it."""
    best: Float[Array, " tokens"]
    """The largest logit."""
    guess: Int[Array, " tokens"]
    """The first column with it."""


def own_ids(ids: Int[Array, " tokens"], num_columns: int, axis: str | None) -> Array:
    """Returns the place of each id among the device's columns, or `ELSEWHERE`.

    Args:
        ids: int32, ids in the whole vocabulary.
        num_columns: Columns that each device of the axis holds, one device after the other.
        axis: Mesh axis over which the vocabulary is cut; None: every device holds all of it.
    """
    if axis is None:
        return ids
    places = ids - jax.lax.axis_index(axis).astype(ids.dtype) * num_columns
    is_own = (places >= 0) & (places < num_columns)
    return jnp.where(is_own, places, jnp.asarray(ELSEWHERE, ids.dtype))


def token_scores(
    own: Columns,
    ids: Int[Array, " tokens"],
    is_counted: Bool[Array, " tokens"],
    axis: str | None,
) -> tuple[tuple[Float[Array, " tokens"], Bool[Array, " tokens"]], Float[Array, " tokens"]]:
    """Returns cross-entropy and whether the best guess is right, and logsumexp over all columns.

    Args:
        own: Facts about the device's columns.
        ids: From `own_ids`.
        is_counted: The scores of other tokens are 0 and False.
        axis: As for `own_ids`.
    """
    logsumexp, true, is_right = own.logsumexp, own.true, own.guess.astype(ids.dtype) == ids
    if axis is not None:
        largest = jax.lax.pmax(logsumexp, axis)
        logsumexp = largest + jnp.log(jax.lax.psum(jnp.exp(logsumexp - largest), axis))
        true = jax.lax.psum(true, axis)
        # Of equal logits the lowest id is the guess: that of the first device.
        place = jax.lax.axis_index(axis)
        is_best = own.best == jax.lax.pmax(own.best, axis)
        first = jax.lax.pmin(jnp.where(is_best, place, jax.lax.axis_size(axis)), axis)
        is_right = jax.lax.pmax((is_right & (place == first)).astype(jnp.int32), axis) > 0
    nll = jnp.where(is_counted, logsumexp - true, jnp.zeros((), logsumexp.dtype))
    return (nll, is_right & is_counted), logsumexp


def summed_cotangent(cotangent: Array, axis: str | None) -> Array:
    """Returns the cotangent of a score that all devices of the axis computed together."""
    return cotangent if axis is None else jax.lax.psum(cotangent, axis)
