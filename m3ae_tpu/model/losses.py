"""Reconstruction losses: means over examples of means over each example's hidden tokens."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


class TokenLoss(NamedTuple):
    """What `token_loss` measures; scalars."""

    loss: Float[Array, ""]
    """Cross-entropy, nats."""
    accuracy: Float[Array, ""]
    """Share of counted tokens whose best guess is right."""
    count: Int[Array, ""]
    """int32, tokens that counted."""


def patch_loss(
    prediction: Float[Array, "batch patches values"], target: Float[Array, "batch patches values"]
) -> Float[Array, ""]:
    """Computes the mean squared error over all patches given: pass the hidden ones (Geng et al. 2022, §3.2).

    Computed in float32, or wider where the inputs are. 0 for no patches.
    """
    wide = np.result_type(prediction.dtype, target.dtype, np.float32)
    if prediction.shape[1] == 0:
        return jnp.zeros((), wide)
    return jnp.square(prediction.astype(wide) - target.astype(wide)).mean()


def token_loss(
    logits: Float[Array, "batch tokens vocab"],
    ids: Int[Array, "batch tokens"],
    counts: Bool[Array, "batch tokens"],
) -> TokenLoss:
    """Computes the cross-entropy and accuracy of the tokens that count.

    Each example weighs the same whatever its length, and one without a counted token adds 0 to
    the mean over examples (the paper's code). Of equal best guesses the lowest id is taken.

    Args:
        logits: Computed with in float32, or wider where they are.
        ids: int32, true pieces.
        counts: True for hidden words, False for padding.
    """
    logits = logits.astype(np.promote_types(logits.dtype, np.float32))
    logit = jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0]
    surprise = jax.nn.logsumexp(logits, axis=-1) - logit
    is_right = (jnp.argmax(logits, axis=-1).astype(ids.dtype) == ids).astype(logits.dtype)
    weights = counts.astype(logits.dtype)
    weights = weights / jnp.maximum(weights.sum(axis=1, keepdims=True), 1e-5)
    return TokenLoss(
        loss=(surprise * weights).sum(axis=1).mean(),
        accuracy=(is_right * weights).sum(axis=1).mean(),
        count=counts.sum(dtype=jnp.int32),
    )
