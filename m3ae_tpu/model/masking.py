"""Masks: which tokens of each example are hidden, drawn at random with static shapes."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from m3ae_tpu.config import MaskingConfig


class Selection(NamedTuple):
    """The tokens of each example that the encoder sees, and those that the decoder predicts."""

    visible: Int[Array, "batch visible"]
    """int32, positions that the encoder sees, in any order."""
    hidden: Int[Array, "batch hidden"]
    """int32, positions that the decoder predicts, in any order."""

    @classmethod
    def from_order(
        cls, order: Int[Array, "batch tokens"], num_visible: int, predicted_share: float = 1.0
    ) -> "Selection":
        """Takes the first `num_visible` positions of a permutation as visible, the rest as hidden.

        Of the hidden ones only the last `predicted_share`, rounded up, is predicted.
        """
        num_hidden = math.ceil((order.shape[1] - num_visible) * predicted_share)
        return cls(order[:, :num_visible], order[:, order.shape[1] - num_hidden :])


class Masks(NamedTuple):
    """The masks of a batch, one for each modality; None: all of it is visible."""

    image: Selection | None = None
    text: Selection | None = None
    drops_text: Bool[Array, " batch"] | None = None
    """True for the rows whose visible words do not count either; None: they count in all rows."""

    def without_dropped_words(
        self, is_valid: Bool[Array, "batch tokens"] | None
    ) -> Bool[Array, "batch tokens"] | None:
        """Returns `is_valid` with the visible words of the rows in `drops_text` as padding."""
        if self.text is None or self.drops_text is None or is_valid is None:
            return is_valid
        # Compared, not scattered: every device keeps to its own rows.
        positions = jnp.arange(is_valid.shape[1])[None, None]
        is_visible = (self.text.visible[:, :, None] == positions).any(axis=1)
        return is_valid & ~(is_visible & self.drops_text[:, None])


def draw_masks(
    key: Key[Array, ""],
    rows: Int[Array, " batch"],
    config: MaskingConfig,
    *,
    num_patches: int | None = None,
    is_valid: Bool[Array, "batch length"] | None = None,
) -> Masks:
    """Draws the masks of some rows of a batch, the same wherever a row is computed.

    Args:
        key: The key of the step and the kind of rows.
        rows: int32, place of each row among all rows of its kind in the global batch.
        config: Mask ratios, text dropout, and how masks are drawn.
        num_patches: Patches of an image; None draws no image mask.
        is_valid: True for tokens of the texts, False for padding; None draws no text mask.
    """
    image_key, text_key, dropout_key = jax.random.split(key, 3)
    if config.draw == "per_batch":
        rows = jnp.zeros_like(rows)  # However a batch is split, its rows share the mask of row 0.
    image = text = drops_text = None
    if num_patches is not None:
        image = select_patches(_row_keys(image_key, rows), num_patches, config)
    if is_valid is not None:
        text = select_tokens(_row_keys(text_key, rows), is_valid, config)
    if image is not None and text is not None and config.text_dropout > 0:
        drops_text = _noise(_row_keys(dropout_key, rows), 1)[:, 0] < config.text_dropout
    return Masks(image, text, drops_text)


def num_visible(num_tokens: int, mask_ratio: float) -> int:
    """Returns how many of `num_tokens` stay visible: num_tokens * (1 - mask_ratio), truncated.

    In double precision as the paper's code computes it, so 25 tokens at 0.8 keep 4 (4.999...).
    """
    return int(num_tokens * (1.0 - mask_ratio))


def select_patches(
    keys: Key[Array, " batch"], num_patches: int, config: MaskingConfig
) -> Selection:
    """Draws the visible and hidden patches of each row uniformly (Geng et al. 2022, §3.1).

    Args:
        keys: One for each row.
        num_patches: Patches of an image.
        config: Gives `image_mask_ratio` and `image_predicted_share`.
    """
    order = jnp.argsort(_noise(keys, num_patches), axis=1)
    num_kept = num_visible(num_patches, config.image_mask_ratio)
    return Selection.from_order(order, num_kept, config.image_predicted_share)


def select_tokens(
    keys: Key[Array, " batch"], is_valid: Bool[Array, "batch tokens"], config: MaskingConfig
) -> Selection:
    """Draws the visible and hidden text positions of each row.

    With `text_positions="all"` padding is drawn like tokens (the paper's code). With "valid" the
    ratio holds for each row's own tokens: of its n tokens `num_visible(n, ratio)` are visible, and
    padding fills the visible places that are left, so that shapes stay static.

    Args:
        keys: One for each row.
        is_valid: True for tokens, False for padding.
        config: Gives `text_mask_ratio` and `text_positions`.
    """
    num_tokens = is_valid.shape[1]
    noise = _noise(keys, num_tokens)
    if config.text_positions == "valid":
        # Sorted by class first: visible tokens, padding, hidden tokens. noise is in [0, 1).
        num_kept = [num_visible(n, config.text_mask_ratio) for n in range(num_tokens + 1)]
        num_kept = jnp.asarray(np.array(num_kept, np.int32))
        rank = jnp.argsort(jnp.argsort(jnp.where(is_valid, noise, jnp.inf), axis=1), axis=1)
        is_visible = rank < num_kept[is_valid.sum(axis=1)][:, None]
        noise = noise + jnp.where(is_valid, jnp.where(is_visible, 0.0, 2.0), 1.0)
    order = jnp.argsort(noise, axis=1)
    return Selection.from_order(order, num_visible(num_tokens, config.text_mask_ratio))


def _row_keys(key: Key[Array, ""], rows: Int[Array, " batch"]) -> Key[Array, " batch"]:
    return jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)


def _noise(keys: Key[Array, " batch"], num_tokens: int) -> Float[Array, "batch tokens"]:
    return jax.vmap(lambda key: jax.random.uniform(key, (num_tokens,)))(keys)
