"""Held-out examples to look at: images as they are, masked and reconstructed, and guessed words."""

import base64
import dataclasses
import functools
import io
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
from jaxtyping import Array, Float32, Int32, Key, UInt8

from m3ae_tpu.batch import Rows
from m3ae_tpu.data.labelled import LabelledExamples
from m3ae_tpu.data.text import Tokenizer
from m3ae_tpu.model.m3ae import M3AE
from m3ae_tpu.parallel.row_map import RowMap
from m3ae_tpu.pretrained.pretrained import Pretrained
from m3ae_tpu.pretrained.reconstruction import fill_images
from m3ae_tpu.pretrained.task import ReconstructionTask
from m3ae_tpu.report.attention_maps import word_attention

NUM_GUESSES = 3

_SEED = 7  # Any; the same masks for every run.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Word:
    """One token of a caption."""

    text: str
    """As it reads; a leading space starts a new word."""
    guesses: tuple[tuple[str, float], ...]
    """The model's best guesses and their probabilities for a hidden token; else none."""
    attention: str
    """PNG as data URI, one pixel a patch: the token's attention. Empty for a run without pairs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShownExample:
    """One example of the report.

    Images are PNG data URIs, empty for a run without images; of a model without a decoder only the
    original is there.
    """

    title: str
    label: str
    original: str
    masked: str
    """Hidden patches are transparent."""
    reconstructed: str
    words: tuple[Word, ...]
    """Empty for a run without text."""
    first_word: int
    """Index of the word whose attention is shown at first."""


def choose_rows(labels: Int32[np.ndarray, " examples"], count: int) -> Int32[np.ndarray, " chosen"]:
    """Returns the indices of `count` examples: the first of each class, then the second, ..."""
    rank = np.zeros(len(labels), np.int64)
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        rank[of_class] = np.arange(len(of_class))
    return np.lexsort((np.arange(len(labels)), labels, rank))[:count].astype(np.int32)


def show_examples(
    run: Pretrained, examples: LabelledExamples, *, count: int = 8
) -> list[ShownExample]:
    """Reconstructs some held-out examples with the run's mask ratios, and maps their attention.

    Args:
        run: Its model reconstructs.
        examples: Held-out ones.
        count: Number of examples shown.
    """
    task = run.task
    shown = examples.take(choose_rows(examples.labels, count))
    rows = task.rows(shown)
    places = np.arange(len(shown), dtype=np.int32)
    drawn: dict[str, Any] = {}
    if run.model.decoder is not None:
        reconstruct = RowMap(functools.partial(_reconstruct, task=task), run.mesh)
        drawn = reconstruct((run.model, jax.random.key(_SEED)), (rows, places))
    maps = word_attention(run.model, rows, task, run.mesh) if task.has_pairs else None
    results = []
    for row, title in enumerate(shown.titles):
        words = ()
        if task.has_texts and run.tokenizer is not None:
            own_maps = None if maps is None else maps[row]
            words = _words(shown, row, drawn, own_maps, run.tokenizer)
        uris = dict.fromkeys(("original", "masked", "reconstructed"), "")
        if task.has_images:
            uris["original"] = png_uri(shown.images[row])
            uris |= {name: png_uri(drawn[name][row]) for name in uris if name in drawn}
        results.append(
            ShownExample(
                title=title,
                label=shown.label_names[shown.labels[row]],
                words=words,
                first_word=_word_of_title(words, title),
                **uris,
            )
        )
    return results


def _reconstruct(
    model_and_key: tuple[M3AE, Key[Array, ""]],
    rows_and_places: tuple[Rows, Int32[Array, " batch"]],
    *,
    task: ReconstructionTask,
) -> dict[str, Array]:
    """Returns images masked and reconstructed, as bytes, and the guesses at hidden words."""
    (model, key), (rows, places) = model_and_key, rows_and_places
    inputs = task.make_inputs(rows)
    masks = task.draw_masks(model, inputs, key, places)
    predicted = task.reconstruct(model, inputs, masks)
    drawn = {}
    if inputs.images is not None and masks.image is not None and predicted.patches is not None:
        masked, filled = fill_images(model, inputs.images, masks.image, predicted.patches, task)
        drawn |= {"masked": masked, "reconstructed": filled}
    if masks.text is not None and predicted.logits is not None:
        probs = jax.nn.softmax(predicted.logits.astype(jnp.float32), axis=2)
        best, ids = jax.lax.top_k(probs, NUM_GUESSES)
        drawn |= {"guess_ids": ids, "guess_probs": best, "hidden_words": masks.text.hidden}
    return drawn


def _words(
    examples: LabelledExamples,
    row: int,
    drawn: dict[str, Any],
    maps: Float32[np.ndarray, "length rows columns"] | None,
    tokenizer: Tokenizer,
) -> tuple[Word, ...]:
    """Returns the tokens of a caption, with the guesses at hidden ones."""

    def read(ids: np.ndarray) -> list[str]:
        return [piece.replace("▁", " ") for piece in tokenizer.pieces(ids)]

    guesses: dict[int, tuple[tuple[str, float], ...]] = {}
    hidden = [drawn[name][row] for name in ("hidden_words", "guess_ids", "guess_probs") if drawn]
    for place, ids, probs in zip(*hidden, strict=True):
        guesses[int(place)] = tuple(zip(read(ids), probs.tolist(), strict=True))
    texts = read(examples.text_ids[row][examples.is_valid[row]])
    return tuple(
        Word(
            text=text,
            guesses=guesses.get(place, ()),
            attention="" if maps is None else attention_uri(maps[place]),
        )
        for place, text in enumerate(texts)
    )


def _word_of_title(words: tuple[Word, ...], title: str) -> int:
    """Returns the index of the longest word that is part of the title, or else of the longest."""
    texts = [word.text.strip() for word in words]
    ranks = [(text.lower() in title.lower(), len(text)) for text in texts]
    return ranks.index(max(ranks)) if ranks else 0


def attention_uri(weights: Float32[np.ndarray, "rows columns"]) -> str:
    """Returns attention as an image with one pixel for each patch, a PNG data URI.

    The opacity of a pixel is the excess of its weight over the mean, relative to the largest one.
    """
    excess = np.clip(weights - weights.mean(), 0, None)
    opacity = excess / max(float(excess.max()), 1e-12)
    image = np.empty((*weights.shape, 4), np.uint8)
    image[..., :3] = (235, 60, 20)
    image[..., 3] = np.round(opacity * 215)
    return png_uri(image)


def png_uri(image: UInt8[np.ndarray, "height width channels"]) -> str:
    """Returns an RGB or RGBA image as a PNG data URI."""
    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
