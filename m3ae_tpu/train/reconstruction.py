"""The pre-training objective: reconstruction losses of every kind of example in a batch."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from m3ae_tpu import scopes
from m3ae_tpu.batch import Batch
from m3ae_tpu.config import Kind, LossConfig, MaskingConfig
from m3ae_tpu.model import losses
from m3ae_tpu.model.inputs import Inputs, Normalizer, make_inputs
from m3ae_tpu.model.m3ae import M3AE
from m3ae_tpu.model.masking import Masks, draw_masks
from m3ae_tpu.model.modality import gather
from m3ae_tpu.model.patches import normalize_patches, patchify
from m3ae_tpu.train.step import Metrics

_KIND_NUMBER: dict[Kind, int] = {"paired": 0, "image": 1, "text": 2}


def reconstruction_loss(
    model: M3AE,
    batch: Batch,
    rows: dict[Kind, Int[Array, " batch"]],
    key: Key[Array, ""],
    *,
    masking: MaskingConfig,
    weights: LossConfig,
    normalizer: Normalizer,
) -> tuple[Array, Metrics]:
    """Computes the weighted sum of all reconstruction terms (Geng et al. 2022, §3.2).

    Each kind is computed at its own length and contributes its own terms only: the mean over its
    rows, times the weight of that kind and term.

    Args:
        model: In any parameter dtype; terms are float32 or wider.
        batch: Rows by kind.
        rows: int32, each row's place among all rows of its kind in the global batch.
        key: The step's; with `rows` it decides every mask.
        masking: Mask ratios and how masks are drawn.
        weights: Weights of the terms, and the space in which patches are compared.
        normalizer: The run's normaliser of images.

    Returns:
        The loss, and with it the means `image_loss`, `text_loss`, `text_accuracy` (`unpaired_...`
        for rows of one modality beside pairs) and the counts `num_images`, `num_texts`,
        `hidden_patches`, `hidden_words`.
    """
    total = jnp.zeros(())
    means: dict[str, Array] = {}
    names = ["num_images", "num_texts", "hidden_patches", "hidden_words"]
    counts = dict.fromkeys(names, jnp.zeros((), jnp.int32))
    for kind in sorted(batch, key=_KIND_NUMBER.__getitem__):
        dtype = np.promote_types(model.compute_dtype, np.float32)
        inputs = make_inputs(batch[kind], normalizer, dtype)
        masks = draw_input_masks(model, inputs, kind_key(key, kind), rows[kind], masking)
        hidden = model.decode_hidden(inputs, masks)
        is_paired = kind == "paired"
        prefix = "unpaired_" if not is_paired and len(batch) > 1 else ""
        if hidden.image is not None:
            loss = _image_loss(model, hidden.image, inputs, masks, weights.norm_pix_loss)
            total += (weights.image_weight if is_paired else weights.unpaired_image_weight) * loss
            means[f"{prefix}image_loss"] = loss
            counts["num_images"] += hidden.image.shape[0]
            counts["hidden_patches"] += hidden.image.shape[0] * hidden.image.shape[1]
        if hidden.text is not None:
            assert inputs.is_valid is not None  # Without it there is no text mask to decode by.
            loss, accuracy, num_words = _text_loss(model, hidden.text, inputs, masks)
            total += (weights.text_weight if is_paired else weights.unpaired_text_weight) * loss
            means |= {f"{prefix}text_loss": loss, f"{prefix}text_accuracy": accuracy}
            counts["num_texts"] += inputs.is_valid.any(axis=1).sum(dtype=jnp.int32)
            counts["hidden_words"] += num_words
    return total, Metrics(means, counts)


def kind_key(key: Key[Array, ""], kind: Kind) -> Key[Array, ""]:
    """Returns the key of a kind's masks in a step."""
    return jax.random.fold_in(key, _KIND_NUMBER[kind])


def batch_masks(
    model: M3AE,
    batch: Batch,
    rows: dict[Kind, Int[Array, " batch"]],
    key: Key[Array, ""],
    *,
    masking: MaskingConfig,
    normalizer: Normalizer,
) -> dict[Kind, Masks]:
    """Returns the masks that `reconstruction_loss` draws from the same arguments."""
    return {
        kind: draw_input_masks(
            model,
            make_inputs(batch[kind], normalizer, jnp.float32),
            kind_key(key, kind),
            rows[kind],
            masking,
        )
        for kind in batch
    }


def draw_input_masks(
    model: M3AE,
    inputs: Inputs,
    key: Key[Array, ""],
    rows: Int[Array, " batch"],
    masking: MaskingConfig,
) -> Masks:
    """Draws masks for whatever modalities the inputs hold; see `draw_masks`."""
    num_patches = None
    if inputs.images is not None:
        grid = model.grid(inputs.images)
        num_patches = grid[0] * grid[1]
    rows = model.operations.constrain(rows)
    masks = draw_masks(key, rows, masking, num_patches=num_patches, is_valid=inputs.is_valid)
    return model.operations.constrain(masks)


def image_targets(
    model: M3AE,
    images: Float[Array, "batch height width 3"],
    hidden: Int[Array, "batch hidden"],
    *,
    norm_pix_loss: bool,
) -> Float[Array, "batch hidden values"]:
    """Returns the targets of hidden patches: normalised pixels, float32 or wider.

    With `norm_pix_loss` each patch is normalised by itself (He et al. 2022, §4.1).
    """
    target = gather(patchify(images, model.patch_size), hidden)
    return normalize_patches(target) if norm_pix_loss else target


@jax.named_scope(scopes.IMAGE_LOSS)
def _image_loss(
    model: M3AE,
    hidden: Float[Array, "batch hidden decoder_width"],
    inputs: Inputs,
    masks: Masks,
    norm_pix_loss: bool,
) -> Float[Array, ""]:
    assert inputs.images is not None
    assert masks.image is not None
    target = image_targets(model, inputs.images, masks.image.hidden, norm_pix_loss=norm_pix_loss)
    return losses.patch_loss(model.head("image")(hidden), target)


@jax.named_scope(scopes.TEXT_LOSS)
def _text_loss(
    model: M3AE, hidden: Float[Array, "batch hidden decoder_width"], inputs: Inputs, masks: Masks
) -> losses.TokenLoss:
    assert inputs.text_ids is not None
    assert inputs.is_valid is not None
    assert masks.text is not None
    ids = gather(inputs.text_ids, masks.text.hidden)
    is_word = gather(inputs.is_valid, masks.text.hidden)
    head = model.head("text")
    rows = model.operations.cross_entropy(hidden, head.kernel, head.bias, ids, is_word)
    return losses.token_loss(rows)
