"""Examples with a part hidden, and filled in by the model: images as bytes, texts as words."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8

from m3ae_tpu.batch import Rows
from m3ae_tpu.data.text import Tokenizer
from m3ae_tpu.model.m3ae import M3AE
from m3ae_tpu.model.masking import Selection
from m3ae_tpu.model.modality import gather
from m3ae_tpu.model.patches import denormalize_patches, patchify, unpatchify
from m3ae_tpu.pretrained.task import ReconstructionTask


class Reconstructed(NamedTuple):
    """Examples as the model saw them, and as it filled them in; None for what was not given."""

    masked_images: UInt8[np.ndarray, "rows size size 4"] | None
    """Red, green, blue, opacity: hidden patches are transparent."""
    images: UInt8[np.ndarray, "rows size size 3"] | None
    masked_texts: list[str] | None
    """Hidden words and parts of words are `_`."""
    texts: list[str] | None


def fill_in(
    model_and_key: tuple[M3AE, Key[Array, ""]],
    rows_and_places: tuple[Rows, Int[Array, " batch"]],
    *,
    task: ReconstructionTask,
) -> dict[str, Array]:
    """Hides parts of examples, and predicts them.

    Args:
        model_and_key: The model, and the key that decides what is hidden.
        rows_and_places: Examples, and the place of each among all.
        task: The run's task.

    Returns:
        `masked_images`, `images`, `is_hidden` [batch, length] and `text_ids`, as far as given.
    """
    (model, key), (rows, places) = model_and_key, rows_and_places
    inputs = task.make_inputs(rows)
    masks = task.draw_masks(model, inputs, key, places)
    predicted = task.reconstruct(model, inputs, masks)
    filled = {}
    if inputs.images is not None and masks.image is not None and predicted.patches is not None:
        masked, images = fill_images(model, inputs.images, masks.image, predicted.patches, task)
        filled |= {"masked_images": masked, "images": images}
    if inputs.text_ids is not None and masks.text is not None and predicted.logits is not None:
        row, hidden = jnp.arange(len(inputs.text_ids))[:, None], masks.text.hidden
        guesses = jnp.argmax(predicted.logits, axis=2).astype(inputs.text_ids.dtype)
        filled["text_ids"] = inputs.text_ids.at[row, hidden].set(guesses)
        filled["is_hidden"] = jnp.zeros(inputs.text_ids.shape, bool).at[row, hidden].set(True)
    return filled


def fill_images(
    model: M3AE,
    images: Float[Array, "batch height width 3"],
    selection: Selection,
    predicted: Float[Array, "batch hidden values"],
    task: ReconstructionTask,
) -> tuple[UInt8[Array, "batch height width 4"], UInt8[Array, "batch height width 3"]]:
    """Returns images with hidden patches transparent, and with predictions in their place.

    Args:
        model: The model that predicts.
        images: Normalised, whole.
        selection: What it saw of them.
        predicted: Its output for each hidden patch.
        task: The run's task. Where its loss normalises patches one by one, the model predicts
            neither mean nor contrast of a patch: those of the original are taken.
    """
    patches = patchify(images, model.patch_size)
    predicted = predicted.astype(patches.dtype)
    if task.norm_pix_loss:
        predicted = denormalize_patches(predicted, gather(patches, selection.hidden))
    row = jnp.arange(patches.shape[0])[:, None]
    is_visible = jnp.zeros(patches.shape[:2]).at[row, selection.visible].set(1.0)
    grid = model.grid(images)

    def to_bytes(values: Array) -> Array:
        return jnp.round(jnp.clip(values, 0, 1) * 255).astype(jnp.uint8)

    def to_image(patches: Array) -> Array:
        return to_bytes(task.normalizer.undo(unpatchify(patches, grid, model.patch_size)))

    opacity = jnp.broadcast_to(is_visible[..., None], patches.shape)
    opacity = to_bytes(unpatchify(opacity, grid, model.patch_size)[..., :1])
    masked = jnp.concatenate([to_image(patches), opacity], axis=3)
    return masked, to_image(patches.at[row, selection.hidden].set(predicted))


def as_reconstructed(
    filled: Mapping[str, np.ndarray], rows: Rows, tokenizer: Tokenizer | None
) -> Reconstructed:
    """Returns what `fill_in` computed, with texts to read.

    Args:
        filled: Its results.
        rows: The examples.
        tokenizer: None where there are no texts.
    """
    masked, texts = None, None
    if "text_ids" in filled and tokenizer is not None and rows.text_ids is not None:
        masked, texts = [], []
        each = (rows.text_ids, rows.is_valid, filled["is_hidden"], filled["text_ids"])
        for ids, is_valid, is_hidden, guesses in zip(*each, strict=True):
            masked.append(_masked(tokenizer.pieces(ids[is_valid]), is_hidden[is_valid].tolist()))
            texts.append(tokenizer.decode(guesses[is_valid]))
    return Reconstructed(filled.get("masked_images"), filled.get("images"), masked, texts)


def _masked(pieces: Sequence[str], is_hidden: Sequence[bool]) -> str:
    shown = [
        ("▁_" if piece.startswith("▁") else "_") if hidden else piece
        for piece, hidden in zip(pieces, is_hidden, strict=True)
    ]
    return "".join(shown).replace("▁", " ").strip()
