"""A image of what a model will see: augmented examples with their texts, and what the masks hide of
both.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from m3ae_tpu.batch import Batch
from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.data.text import Tokenizer
from m3ae_tpu.model import masking

_SIDE, _GAP, _COLUMNS, _LINE, _LINES = 192, 12, 3, 19, 6
_INK, _PAPER, _HIDDEN_INK, _HIDDEN = "#1c1c1c", "#ffffff", "#8a8a8a", "#e4e4e4"
_GREY = 150


def draw_contact_sheet(
    config: PretrainConfig, batch: Batch, tokenizer: Tokenizer | None, *, examples: int = 12
) -> Image.Image:
    """Draws the first examples of each kind of a batch: augmented, then as the encoder gets them.

    Hidden patches are grey, hidden words pale on grey. Masks are drawn as the train step draws
    them.

    Args:
        config: `seed`, `masking`, `model.patch_size` and `data.flip_probability` count.
        batch: From the loader.
        tokenizer: Reads the texts back; None for images alone.
        examples: Of each kind, at most.
    """
    tiles: list[Image.Image | str] = []
    for kind, arrays in batch.items():
        num_rows = len(arrays.images if arrays.images is not None else arrays.text_ids)
        rows = np.arange(min(examples, num_rows))
        tiles.append(f"{kind}: {len(rows)} of {num_rows} rows of the first batch")
        image_keys, text_keys = (
            masking.row_keys(key, jnp.asarray(rows))
            for key in jax.random.split(jax.random.key(config.seed))
        )
        shown = seen = hidden_words = None
        if arrays.images is not None:
            images, flips = arrays.images[rows], arrays.is_flipped[rows]
            shown = np.where(flips[:, None, None, None], images[:, :, ::-1], images)
            patches = (config.data.image_size // config.model.patch_size) ** 2
            selection = masking.select_patches(image_keys, patches, config.masking)
            seen = hide_patches(shown, np.asarray(selection.visible), config.model.patch_size)
        if arrays.text_ids is not None:
            valid = arrays.is_valid[rows]
            hidden = np.asarray(
                masking.select_tokens(text_keys, jnp.asarray(valid), config.masking).hidden
            )
            hidden_words = np.zeros(valid.shape, bool)
            np.put_along_axis(hidden_words, hidden, True, axis=1)
        for row in rows.tolist():
            words = []
            if tokenizer is not None and hidden_words is not None:
                ids = arrays.text_ids[row][arrays.is_valid[row]]
                words = list(zip(tokenizer.pieces(ids), hidden_words[row].tolist(), strict=False))
            pair = () if shown is None or seen is None else (shown[row], seen[row])
            tiles.append(_tile(pair, words))
    return _arrange(tiles)


def hide_patches(
    images: UInt8[np.ndarray, "rows size size 3"], visible: np.ndarray, patch_size: int
) -> UInt8[np.ndarray, "rows size size 3"]:
    """Returns the images with every patch grey that is not among each row's visible ones."""
    side = images.shape[1] // patch_size
    is_visible = np.zeros((len(images), side * side), bool)
    np.put_along_axis(is_visible, visible, True, axis=1)
    grid = is_visible.reshape(-1, side, side).repeat(patch_size, axis=1).repeat(patch_size, axis=2)
    return np.where(grid[..., None], images, np.uint8(_GREY))


def _tile(pictures: tuple[np.ndarray, ...], words: list[tuple[str, bool]]) -> Image.Image:
    """Draws one example: its images side by side, its text below."""
    top = _SIDE + 6 if pictures else 0
    height = top + (_LINES * _LINE if words else 0)
    tile = Image.new("RGB", (2 * _SIDE + 4, height), _PAPER)
    for number, picture in enumerate(pictures):
        resized = Image.fromarray(picture).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
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
