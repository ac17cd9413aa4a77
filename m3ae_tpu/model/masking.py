"""Which tokens are hidden: random choices with static shapes."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from m3ae_tpu.config import MaskingConfig


class Selection(NamedTuple):
    """The tokens of each example that the encoder sees, and those that the decoder rebuilds.

    Given permutations (parity tests, images) enter by `Selection.from_order`.
    """

    visible: Int[Array, "batch visible"]
    """int32, positions that the encoder sees, in any order."""
    hidden: Int[Array, "batch hidden"]
    """int32, positions that the decoder rebuilds, in any order."""

    @classmethod
    def from_order(
        cls, order: Int[Array, "batch tokens"], num_visible: int, predicted_share: float = 1.0
    ) -> "Selection":
        """Takes the first `num_visible` positions of a permutation as visible, the rest as hidden.

        Of the hidden ones only the last `predicted_share`, rounded up, is rebuilt.
        """
        num_hidden = math.ceil((order.shape[1] - num_visible) * predicted_share)
        return cls(order[:, :num_visible], order[:, order.shape[1] - num_hidden :])


def num_visible(num_tokens: int, mask_ratio: float) -> int:
    """Returns how many of `num_tokens` stay visible: num_tokens * (1 - mask_ratio), truncated.

    In double precision as the paper's code computes it, so 25 tokens at 0.8 keep 4 (4.999...).
    """
    return int(num_tokens * (1.0 - mask_ratio))


def row_keys(key: Key[Array, ""], rows: Int[Array, " batch"]) -> Key[Array, " batch"]:
    """Returns one key for each row, by its place in the global batch: neither devices nor processes
    change it.
    """
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)


def select_patches(
    keys: Key[Array, " batch"], num_patches: int, config: MaskingConfig
) -> Selection:
    """Draws the visible and hidden patches of each row uniformly (Geng et al. 2022, §3.1).

    Args:
        keys: One for each row, see `row_keys`.
        num_patches: Patches of an image.
        config: `image_mask_ratio`, `image_predicted_share` and `draw` count.
    """
    order = jnp.argsort(_noise(keys, num_patches, config), axis=1)
    kept = num_visible(num_patches, config.image_mask_ratio)
    return Selection.from_order(order, kept, config.image_predicted_share)


def select_tokens(
    keys: Key[Array, " batch"], valid: Bool[Array, "batch tokens"], config: MaskingConfig
) -> Selection:
    """Draws the visible and hidden text positions of each row.

    With `text_positions="all"` padding is drawn like words (the paper's code). With "valid" the
    share holds for each row's own words: of its n words `num_visible(n, ratio)` are visible, and
    padding fills the visible places that are left, so that shapes stay static.

    Args:
        keys: One for each row, see `row_keys`.
        valid: True for words, False for padding.
        config: `text_mask_ratio`, `draw` and `text_positions` count.
    """
    num_tokens = valid.shape[1]
    noise = _noise(keys, num_tokens, config)
    if config.text_positions == "valid":
        # Sorted by class first: visible words, padding, hidden words. noise is in [0, 1).
        counts = np.array(
            [num_visible(n, config.text_mask_ratio) for n in range(num_tokens + 1)], np.int32
        )
        word_noise = jnp.where(valid, noise, jnp.inf)
        rank = jnp.argsort(jnp.argsort(word_noise, axis=1), axis=1)
        is_visible = rank < jnp.asarray(counts)[valid.sum(axis=1)][:, None]
        noise = noise + jnp.where(valid, jnp.where(is_visible, 0.0, 2.0), 1.0)
    order = jnp.argsort(noise, axis=1)
    return Selection.from_order(order, num_visible(num_tokens, config.text_mask_ratio))


def _noise(
    keys: Key[Array, " batch"], num_tokens: int, config: MaskingConfig
) -> Float[Array, "batch tokens"]:
    if config.draw == "per_batch":
        shared = jax.random.uniform(keys[0], (num_tokens,))
        return jnp.broadcast_to(shared[None], (keys.shape[0], num_tokens))
    return jax.vmap(lambda key: jax.random.uniform(key, (num_tokens,)))(keys)
