"""Reconstruction losses: means over examples of means over each example's hidden tokens."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from m3ae_tpu.kernels.cross_entropy.reference import CrossEntropy


class TokenLoss(NamedTuple):
    """The results of `token_loss`; scalars."""

    loss: Float[Array, ""]
    """Cross-entropy, nats."""
    accuracy: Float[Array, ""]
    """Share of counted tokens whose best guess is right."""
    count: Int[Array, ""]
    """int32, tokens that counted."""


def patch_loss(
    prediction: Float[Array, "batch patches values"], target: Float[Array, "batch patches values"]
) -> Float[Array, ""]:
    """Computes the mean squared error over all patches given: pass the hidden ones (Geng et al.
    2022, §3.2).

    Computed in float32, or wider where the inputs are. 0 for no patches.
    """
    wide = np.result_type(prediction.dtype, target.dtype, np.float32)
    if prediction.shape[1] == 0:
        return jnp.zeros((), wide)
    return jnp.square(prediction.astype(wide) - target.astype(wide)).mean()


def token_loss(rows: CrossEntropy) -> TokenLoss:
    """Averages the rows' cross-entropy and accuracy, and adds up the tokens that counted.

    Each example weighs the same whatever its length, and one without a counted token adds 0 to
    the mean over examples (the paper's code).
    """
    return TokenLoss(rows.loss.mean(), rows.accuracy.mean(), rows.count.sum(dtype=jnp.int32))
