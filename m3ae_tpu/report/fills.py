"""Held-out images with patches hidden and filled in again, at several mask ratios."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int32, Key

from m3ae_tpu.batch import Rows
from m3ae_tpu.data.labelled import LabelledExamples
from m3ae_tpu.model.inputs import Inputs
from m3ae_tpu.model.m3ae import M3AE
from m3ae_tpu.model.masking import Masks, Selection, num_visible
from m3ae_tpu.parallel.row_map import RowMap
from m3ae_tpu.pretrained.pretrained import Pretrained
from m3ae_tpu.pretrained.reconstruction import fill_images
from m3ae_tpu.pretrained.task import ReconstructionTask
from m3ae_tpu.report.uris import png_uri

RATIOS = (0.5, 0.75, 0.9)
"""Mask ratios that show what more of an image gives away, and less."""
SEED = 7
"""Decides the masks of examples that are shown: any; the same for every run."""
_ROWS_PER_DEVICE = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fill:
    """One image with a share of its patches hidden, as PNG data URIs."""

    share: float
    """Share of the patches that are hidden."""
    is_own: bool
    """True where the run was trained with as many."""
    masked: str
    """Hidden patches are transparent."""
    reconstructed: str


def show_fills(
    run: Pretrained, examples: LabelledExamples, ratios: Sequence[float]
) -> list[tuple[Fill, ...]]:
    """Hides patches of images and has the model predict them, at each ratio.

    A caption is beside its image where the run has learned pairs, with its words hidden at the
    run's ratio. Patches that one ratio hides are hidden at every larger one.

    Args:
        run: Its model predicts.
        examples: Held-out ones.
        ratios: Shares of the patches to hide; of those that hide as many one is shown.

    Returns:
        For each example its fills, the least hidden first; none for a run without images or
        without a decoder.
    """
    if run.model.decoder is None or not run.task.has_images:
        return [()] * len(examples)
    num_patches = int(
        np.prod([side // run.model.patch_size for side in examples.images.shape[1:3]])
    )
    own = num_visible(num_patches, run.task.masking.image_mask_ratio)
    counts = {num_visible(num_patches, ratio) for ratio in ratios}
    fill = RowMap(
        functools.partial(_fill, task=run.task), run.mesh, rows_per_device=_ROWS_PER_DEVICE
    )
    rows = run.task.rows(examples), np.arange(len(examples), dtype=np.int32)
    by_count = {
        count: fill((run.model, jax.random.key(SEED), np.int32(count)), rows)
        for count in sorted(counts, reverse=True)
    }
    return [
        tuple(
            Fill(
                share=1 - count / num_patches,
                is_own=count == own,
                masked=png_uri(masked[row]),
                reconstructed=png_uri(reconstructed[row]),
            )
            for count, (masked, reconstructed) in by_count.items()
        )
        for row in range(len(examples))
    ]


def _fill(
    whole: tuple[M3AE, Key[Array, ""], Int[Array, ""]],
    rows_and_places: tuple[Rows, Int32[Array, " batch"]],
    *,
    task: ReconstructionTask,
) -> tuple[Array, Array]:
    """Returns images masked, with opacity, and reconstructed, as bytes."""
    (model, key, count), (rows, places) = whole, rows_and_places
    inputs = task.make_inputs(rows)
    masks = task.draw_masks(model, inputs, key, places)
    images = inputs.images
    assert images is not None
    assert masks.image is not None
    order = jnp.concatenate(masks.image, axis=1)
    if not task.has_pairs:
        inputs, masks = Inputs(images=images), Masks()
    predicted = predict_patches(model, inputs, order, count, masks.text)
    num_patches = order.shape[1]
    is_visible = jnp.arange(num_patches) < count
    # Writes to places that do not exist are dropped: shapes stay the same at every ratio.
    selection = Selection(
        jnp.where(is_visible, order, num_patches), jnp.where(is_visible, num_patches, order)
    )
    return fill_images(model, images, selection, predicted, task)


def predict_patches(
    model: M3AE,
    inputs: Inputs,
    order: Int[Array, "batch patches"],
    count: Int[Array, ""],
    text: Selection | None,
) -> Float[Array, "batch patches values"]:
    """Predicts every patch from the first `count` in an order: `reconstruct` for any mask ratio.

    The encoder computes all patches and attends to the first ones alone, so that one compiled
    program serves every ratio. What it returns of the first ones has no meaning.

    Args:
        model: With a decoder.
        inputs: Images, and texts if `text` is given.
        order: Places of the patches, the visible ones first.
        count: Number of visible patches.
        text: Visible and hidden words; None without texts.
    """
    num_patches, no_patch = order.shape[1], order[:, :0]
    all_visible = Masks(Selection(order, no_patch), text)
    all_hidden = Masks(Selection(no_patch, order), text)
    patches = slice(1, 1 + num_patches)
    is_visible = jnp.arange(num_patches) < count

    x, is_valid = model.embed(inputs, all_visible)
    is_valid = jnp.ones(x.shape[:2], bool) if is_valid is None else is_valid
    encoded = model.encoder(x, is_valid.at[:, patches].set(is_visible))
    x, is_valid = model.embed_for_decoder(encoded, inputs, all_visible)
    others = jnp.concatenate([encoded[:, :1], encoded[:, patches.stop :]], axis=1)
    hidden, _ = model.embed_for_decoder(others, inputs, all_hidden)
    is_known = jnp.ones(x.shape[1], bool).at[patches].set(is_visible)
    assert model.decoder is not None
    x = model.decoder(jnp.where(is_known[None, :, None], x, hidden), is_valid)
    return model.head("image")(x[:, patches])
