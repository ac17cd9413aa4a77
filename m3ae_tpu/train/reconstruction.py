"""What pre-training minimises: the reconstruction terms of every kind of example in a batch."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from m3ae_tpu.config import Kind, PretrainConfig
from m3ae_tpu.model import losses, masking, patches
from m3ae_tpu.model.m3ae import M3AE

type Batch = dict[Kind, dict[str, Array]]
type Metrics = dict[str, Array]

_KIND_NUMBER: dict[Kind, int] = {"paired": 0, "image": 1, "text": 2}


def reconstruction_loss(
    model: M3AE,
    batch: Batch,
    rows: dict[Kind, Int[Array, " batch"]],
    key: Key[Array, ""],
    config: PretrainConfig,
) -> tuple[Array, Metrics]:
    """Computes the weighted sum of all reconstruction terms, and each of them (Geng et al. 2022,
    §3.2).

    Each kind is computed at its own length and contributes its own terms only: the mean over its
    rows, times the weight of that kind and term.

    Args:
        model: In any parameter dtype; terms are float32 or wider.
        batch: Arrays by kind, as `data/records.py` describes.
        rows: int32, each row's place among all rows of its kind in the global batch.
        key: The step's; with `rows` it decides every mask.
        config: `masking`, `loss` and the image statistics of `data` count.

    Returns:
        The loss and the metrics `image_loss`, `text_loss`, `text_accuracy` (`unpaired_...` for rows
        of one modality beside pairs) with the counts `num_images`, `num_texts`, `hidden_patches`,
        `hidden_words`.
    """
    total = jnp.zeros(())
    metrics: Metrics = {"num_images": _count(0), "num_texts": _count(0)}
    metrics |= {"hidden_patches": _count(0), "hidden_words": _count(0)}
    for kind in sorted(batch, key=_KIND_NUMBER.__getitem__):
        prefix = "unpaired_" if kind != "paired" and len(batch) > 1 else ""
        kind_key = jax.random.fold_in(key, _KIND_NUMBER[kind])
        terms, counts = _kind_terms(model, batch[kind], rows[kind], kind_key, config)
        for name, value in counts.items():
            metrics[name] = metrics[name] + value
        for name, value in terms.items():
            metrics[prefix + name] = value
        weights = config.loss
        image_weight = weights.image_weight if kind == "paired" else weights.unpaired_image_weight
        text_weight = weights.text_weight if kind == "paired" else weights.unpaired_text_weight
        if "image_loss" in terms:
            total = total + image_weight * terms["image_loss"]
        if "text_loss" in terms:
            total = total + text_weight * terms["text_loss"]
    return total, metrics | {"loss": total}


def _kind_terms(
    model: M3AE, arrays: dict[str, Array], rows: Array, key: Key[Array, ""], config: PretrainConfig
) -> tuple[Metrics, Metrics]:
    """Returns the terms of one kind's rows, and their counts."""
    image_key, text_key = jax.random.split(key)
    if config.masking.draw == "per_batch":
        rows = jnp.zeros_like(rows)  # One draw for all, in whatever parts the batch is computed.
    images = image_selection = text_selection = None
    text, text_valid = arrays.get("text"), arrays.get("text_valid")
    terms, counts = {}, {}
    if "image" in arrays:
        images = arrays["image"]
        if "flip" in arrays:
            images = jnp.where(arrays["flip"][:, None, None, None], images[:, :, ::-1], images)
        images = patches.normalize_images(
            images,
            config.data.image_mean,
            config.data.image_std,
            np.promote_types(model.compute_dtype, np.float32),
        )
        grid = model.grid(images)
        image_selection = masking.select_patches(
            masking.row_keys(image_key, rows), grid[0] * grid[1], config.masking
        )
    if text is not None and text_valid is not None:
        text_selection = masking.select_tokens(
            masking.row_keys(text_key, rows), text_valid, config.masking
        )
    hidden = model.decode_hidden(images, image_selection, text, text_valid, text_selection)
    if images is not None and image_selection is not None and hidden.patches is not None:
        with jax.named_scope("image_loss"):
            terms["image_loss"] = losses.patch_loss(
                model.image_head(hidden.patches),
                image_targets(images, image_selection, model, config),
            )
        counts["num_images"] = _count(images.shape[0])
        counts["hidden_patches"] = _count(image_selection.hidden.size)
    if (
        text is not None
        and text_valid is not None
        and text_selection is not None
        and hidden.text is not None
        and model.text_head is not None
    ):
        ids = jnp.take_along_axis(text, text_selection.hidden, axis=1)
        is_word = jnp.take_along_axis(text_valid, text_selection.hidden, axis=1)
        head = model.text_head
        with jax.named_scope("text_loss"):
            measured = losses.token_loss(
                model.cross_entropy_fn(hidden.text, head.kernel, head.bias, ids, is_word)
            )
        terms |= {"text_loss": measured.loss, "text_accuracy": measured.accuracy}
        counts["num_texts"] = text_valid.any(axis=1).sum(dtype=jnp.int32)
        counts["hidden_words"] = measured.count
    return terms, counts


def image_targets(
    images: Array, selection: masking.Selection, model: M3AE, config: PretrainConfig
) -> Array:
    """Returns what the decoder should guess: the hidden patches' pixels [batch, hidden, values],
    float32.

    Normalised pixels, or with `loss.norm_pix_loss` patches normalised one by one.
    """
    target = patches.patchify(images, model.patch_size)
    target = jnp.take_along_axis(target, selection.hidden[..., None], axis=1)
    return patches.normalize_patches(target) if config.loss.norm_pix_loss else target


def _count(value: Any) -> Array:
    return jnp.asarray(value, jnp.int32)
