"""Held-out examples as one can look at them: original, masked and reconstructed, with the words'
guesses.
"""

import base64
import dataclasses
import functools
import io

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from jaxtyping import Array, Float32, Int32, UInt8

from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.data.labelled import LabelledExamples
from m3ae_tpu.data.text import Tokenizer
from m3ae_tpu.model import masking, patches
from m3ae_tpu.model.m3ae import M3AE
from m3ae_tpu.report.attention_maps import word_attention

NUM_GUESSES = 3

_SEED = 7  # Any; the same images and masks for every run.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Word:
    """One piece of a caption."""

    text: str
    """As it reads; a leading space starts a new word."""
    guesses: tuple[tuple[str, float], ...]
    """The model's best guesses with their probabilities, if the piece was hidden; else none."""
    heat: str
    """PNG as data URI, one pixel a patch: where the piece looks; empty without an image and text
    model.
    """


@dataclasses.dataclass(frozen=True, kw_only=True)
class Picture:
    """One example; images are PNG data URIs, empty for a run without images."""

    title: str
    label: str
    original: str
    masked: str
    """Hidden patches are transparent."""
    reconstructed: str
    words: tuple[Word, ...]
    """Empty for a run without text."""
    looking: int
    """Index of the word whose attention is shown first."""


def choose_rows(labels: Int32[np.ndarray, " examples"], count: int) -> Int32[np.ndarray, " chosen"]:
    """Returns up to `count` examples that take turns between the classes, in the order of the data."""
    turn = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        turn[rows] = np.arange(len(rows))
    return np.lexsort((np.arange(len(labels)), labels, turn))[:count].astype(np.int32)


def make_pictures(
    model: M3AE,
    examples: LabelledExamples,
    config: PretrainConfig,
    tokenizer: Tokenizer,
    *,
    count: int = 8,
) -> list[Picture]:
    """Reconstructs some examples with the run's mask ratios, and looks up what their words look at.

    Args:
        model: Trained with `config`.
        examples: Held-out ones.
        config: The run's.
        tokenizer: The run's.
        count: Examples shown.
    """
    kinds = {source.kind for source in config.data.sources}
    has_image, has_text = bool(kinds & {"paired", "image"}), bool(kinds & {"paired", "text"})
    chosen = choose_rows(examples.label, count)
    images, text, text_valid = (
        examples.images[chosen],
        examples.text_ids[chosen],
        examples.is_valid[chosen],
    )
    drawn = jax.device_get(
        _reconstruct(model, images, text, text_valid, config=config, has=(has_image, has_text))
    )
    heat = (
        word_attention(model, images, text, text_valid, config.data) if "paired" in kinds else None
    )
    pictures = []
    for row, example in enumerate(chosen):
        words = ()
        if has_text:
            guesses = {
                int(position): (drawn["guess_ids"][row, hidden], drawn["guess_probs"][row, hidden])
                for hidden, position in enumerate(drawn["hidden_words"][row])
            }
            maps = None if heat is None else heat[row]
            words = _words(text[row, : text_valid[row].sum()], guesses, maps, tokenizer)
        pictures.append(
            Picture(
                title=examples.title[example],
                label=examples.label_names[examples.label[example]],
                original=png_uri(images[row]) if has_image else "",
                masked=png_uri(drawn["masked"][row]) if has_image else "",
                reconstructed=png_uri(drawn["reconstructed"][row]) if has_image else "",
                words=words,
                looking=_telling_word(words, examples.title[example]),
            )
        )
    return pictures


@functools.partial(jax.jit, static_argnames=("config", "has"))
def _reconstruct(
    model: M3AE,
    images: Array,
    text: Array,
    text_valid: Array,
    *,
    config: PretrainConfig,
    has: tuple[bool, bool],
) -> dict[str, Array]:
    """Returns images with holes and filled in, as bytes, and the guesses at hidden words."""
    has_image, has_text = has
    image_key, text_key = jax.random.split(jax.random.key(_SEED))
    how = dataclasses.replace(config.masking, draw="per_example", image_predicted_share=1.0)
    rows = jnp.arange(images.shape[0])
    pixels = image_selection = text_selection = None
    if has_image:
        pixels = patches.normalize_images(
            images, config.data.image_mean, config.data.image_std, jnp.float32
        )
        num_patches = int(np.prod(model.grid(pixels)))
        image_selection = masking.select_patches(
            masking.row_keys(image_key, rows), num_patches, how
        )
    if has_text:
        text_selection = masking.select_tokens(masking.row_keys(text_key, rows), text_valid, how)
    words = (text, text_valid) if has_text else (None, None)
    if any(source.kind == "paired" for source in config.data.sources):
        guess = model.reconstruct(pixels, image_selection, *words, text_selection)
        filled, logits = guess.patches, guess.logits
    else:  # A run without pairs has never seen both together.
        filled = (
            model.reconstruct(pixels, image_selection, None, None, None).patches
            if has_image
            else None
        )
        logits = model.reconstruct(None, None, *words, text_selection).logits if has_text else None
    drawn = {}
    if pixels is not None and image_selection is not None and filled is not None:
        drawn |= _fill_in(pixels, image_selection, filled.astype(jnp.float32), model, config)
    if text_selection is not None and logits is not None:
        probs = jax.nn.softmax(logits.astype(jnp.float32), axis=2)
        best, ids = jax.lax.top_k(probs, NUM_GUESSES)
        drawn |= {"guess_ids": ids, "guess_probs": best, "hidden_words": text_selection.hidden}
    return drawn


def _fill_in(
    pixels: Array, selection: masking.Selection, guess: Array, model: M3AE, config: PretrainConfig
) -> dict[str, Array]:
    cut = patches.patchify(pixels, model.patch_size)
    if config.loss.norm_pix_loss:
        # The model says nothing of a patch's own mean and contrast then: the original's are lent to
        # it.
        true = jnp.take_along_axis(cut, selection.hidden[..., None], axis=1)
        spread = jnp.sqrt(true.var(axis=2, keepdims=True, ddof=1) + 1e-6)
        guess = guess * spread + true.mean(axis=2, keepdims=True)
    row = jnp.arange(cut.shape[0])[:, None]
    is_visible = jnp.zeros(cut.shape[:2]).at[row, selection.visible].set(1.0)
    filled = cut.at[row, selection.hidden].set(guess)
    as_image = functools.partial(
        patches.unpatchify, grid=model.grid(pixels), patch_size=model.patch_size
    )

    def to_bytes(values: Array) -> Array:
        shown = patches.denormalize_images(
            as_image(values), config.data.image_mean, config.data.image_std
        )
        return jnp.round(jnp.clip(shown, 0, 1) * 255).astype(jnp.uint8)

    alpha = as_image(jnp.broadcast_to(is_visible[..., None], cut.shape))[..., :1]
    opacity = jnp.round(alpha * 255).astype(jnp.uint8)
    return {
        "masked": jnp.concatenate([to_bytes(cut), opacity], axis=3),
        "reconstructed": to_bytes(filled),
    }


def _words(
    ids: np.ndarray,
    guesses: dict[int, tuple[np.ndarray, np.ndarray]],
    heat: np.ndarray | None,
    tokenizer: Tokenizer,
) -> tuple[Word, ...]:
    def read(piece_ids: np.ndarray) -> list[str]:
        return [piece.replace("▁", " ") for piece in tokenizer.pieces(piece_ids)]

    words = []
    for position, piece in enumerate(read(ids)):
        best, probs = guesses.get(position, (np.zeros(0, np.int32), np.zeros(0)))
        best_guesses = tuple(zip(read(best), [float(prob) for prob in probs], strict=True))
        words.append(
            Word(
                text=piece,
                guesses=best_guesses,
                heat="" if heat is None else heat_uri(heat[position]),
            )
        )
    return tuple(words)


def _telling_word(words: tuple[Word, ...], title: str) -> int:
    """Returns the longest piece that is part of the title, or else the longest."""
    lengths = [
        len(word.text.strip()) + 100 * (word.text.strip().lower() in title.lower())
        for word in words
    ]
    return int(np.argmax(lengths)) if lengths else 0


def heat_uri(weights: Float32[np.ndarray, "rows columns"]) -> str:
    """Returns attention as a image whose opacity says how far a patch lies above the mean, one
    pixel a patch.
    """
    above = np.clip(weights - weights.mean(), 0, None)
    strength = above / max(float(above.max()), 1e-12)
    picture = np.empty((*weights.shape, 4), np.uint8)
    picture[..., :3] = (235, 60, 20)
    picture[..., 3] = np.round(strength * 215)
    return png_uri(picture)


def png_uri(image: UInt8[np.ndarray, "height width channels"]) -> str:
    """Returns an RGB or RGBA image as a PNG data URI."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
