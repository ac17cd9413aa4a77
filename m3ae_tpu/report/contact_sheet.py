"""A contact sheet of a run's first batch: augmented examples, and what its masks leave visible."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from m3ae_tpu.batch import Batch, Rows
from m3ae_tpu.config import Kind, MaskingConfig
from m3ae_tpu.data.text import Tokenizer
from m3ae_tpu.model.inputs import Normalizer, make_inputs
from m3ae_tpu.model.masking import Masks, draw_masks
from m3ae_tpu.train.reconstruction import kind_key
from m3ae_tpu.train.step import steps_key

_SIDE, _GAP, _COLUMNS, _LINE, _LINES = 192, 12, 3, 19, 6
_INK, _PAPER, _HIDDEN_INK, _HIDDEN = "#1c1c1c", "#ffffff", "#8a8a8a", "#e4e4e4"
_GREY = 150
_TO_UNIT_SCALE = Normalizer((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def draw_contact_sheet(
    batch: Batch,
    tokenizer: Tokenizer | None,
    *,
    seed: int,
    masking: MaskingConfig,
    patch_size: int,
    num_examples: int = 12,
) -> Image.Image:
    """Draws the first examples of each kind of a batch: augmented, and as the encoder gets them.

    Hidden patches are grey, hidden words pale on grey.

    Args:
        batch: From the loader.
        tokenizer: Reads the texts back; None for images alone.
        seed: The run's seed: its first step draws the same masks.
        masking: The run's mask ratios.
        patch_size: The model's.
        num_examples: Largest number of examples of each kind.
    """
    tiles: list[Image.Image | str] = []
    for kind, rows in batch.items():
        num_rows = len(rows.images if rows.images is not None else rows.text_ids)
        num_shown = min(num_examples, num_rows)
        tiles.append(f"{kind}: {num_shown} of {num_rows} rows of the first batch")
        rows = Rows(*(None if array is None else array[:num_shown] for array in rows))
        masks = first_masks(kind, rows, seed=seed, masking=masking, patch_size=patch_size)
        images = masked = None
        if rows.images is not None and masks.image is not None:
            pixels = make_inputs(rows, _TO_UNIT_SCALE, jnp.float32).images
            images = np.round(255 * np.asarray(pixels)).astype(np.uint8)
            masked = hide_patches(images, np.asarray(masks.image.visible), patch_size)
        for row in range(num_shown):
            words = []
            if tokenizer is not None and rows.text_ids is not None and masks.text is not None:
                is_hidden = np.zeros(rows.is_valid.shape[1], bool)
                is_hidden[np.asarray(masks.text.hidden[row])] = True
                is_hidden |= masks.drops_text is not None and bool(masks.drops_text[row])
                pieces = tokenizer.pieces(rows.text_ids[row][rows.is_valid[row]])
                words = list(zip(pieces, is_hidden.tolist(), strict=False))
            pair = () if images is None or masked is None else (images[row], masked[row])
            tiles.append(_tile(pair, words))
    return _arrange(tiles)


def first_masks(
    kind: Kind, rows: Rows, *, seed: int, masking: MaskingConfig, patch_size: int
) -> Masks:
    """Draws the masks that the first step of a run draws for the first rows of a kind.

    Args:
        kind: Kind of the rows.
        rows: The first ones of the kind in the first batch.
        seed: The run's seed.
        masking: The run's mask ratios.
        patch_size: The model's.
    """
    key = kind_key(jax.random.fold_in(steps_key(seed), 0), kind)
    num_patches = is_valid = None
    if rows.images is not None:
        height, width = rows.images.shape[1:3]
        num_patches = (height // patch_size) * (width // patch_size)
    if rows.is_valid is not None:
        is_valid = jnp.asarray(rows.is_valid)
    places = jnp.arange(len(rows.images if rows.images is not None else rows.text_ids))
    return draw_masks(key, places, masking, num_patches=num_patches, is_valid=is_valid)


def hide_patches(
    images: UInt8[np.ndarray, "rows size size 3"], visible: np.ndarray, patch_size: int
) -> UInt8[np.ndarray, "rows size size 3"]:
    """Returns the images with every patch grey that is not among each row's visible ones."""
    side = images.shape[1] // patch_size
    is_visible = np.zeros((len(images), side * side), bool)
    np.put_along_axis(is_visible, visible, True, axis=1)
    grid = is_visible.reshape(-1, side, side).repeat(patch_size, axis=1).repeat(patch_size, axis=2)
    return np.where(grid[..., None], images, np.uint8(_GREY))


def _tile(images: tuple[np.ndarray, ...], words: list[tuple[str, bool]]) -> Image.Image:
    """Draws one example: its images side by side, its text below."""
    top = _SIDE + 6 if images else 0
    height = top + (_LINES * _LINE if words else 0)
    tile = Image.new("RGB", (2 * _SIDE + 4, height), _PAPER)
    for number, image in enumerate(images):
        resized = Image.fromarray(image).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
        tile.paste(resized, (number * (_SIDE + 4), 0))
    pen, font = ImageDraw.Draw(tile), ImageFont.load_default(14)
    x, y = 0.0, top
    for piece, is_hidden in words:
        text = piece.replace("▁", " ")
        width = pen.textlength(text, font)
        if x + width > tile.width:
            x, y, text = 0.0, y + _LINE, text.lstrip()
            width = pen.textlength(text, font)
        if y + _LINE > height:
            pen.text((tile.width - 14, height - _LINE), "...", _INK, font)
            break
        if is_hidden:
            pen.rectangle((x, y + 1, x + width, y + _LINE - 2), _HIDDEN)
        pen.text((x, y), text, _HIDDEN_INK if is_hidden else _INK, font)
        x += width
    return tile.crop((0, 0, tile.width, min(height, y + _LINE) if words else height))


def _arrange(tiles: list[Image.Image | str]) -> Image.Image:
    """Lays tiles out in columns; a text starts a new part under it as heading."""
    width = _COLUMNS * (2 * _SIDE + 4) + (_COLUMNS + 1) * 2 * _GAP
    places, y, column, tallest = [], _GAP, 0, 0
    for tile in tiles:
        if isinstance(tile, str) or column == _COLUMNS:
            y, column, tallest = y + (tallest + 2 * _GAP if tallest else 0), 0, 0
        places.append((2 * _GAP + column * (2 * _SIDE + 4 + 2 * _GAP), y))
        if isinstance(tile, str):
            y += 34
        else:
            column, tallest = column + 1, max(tallest, tile.height)
    sheet = Image.new("RGB", (width, y + tallest + _GAP), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for tile, place in zip(tiles, places, strict=True):
        if isinstance(tile, str):
            pen.text(place, tile, _INK, ImageFont.load_default(20))
        else:
            sheet.paste(tile, place)
    return sheet
