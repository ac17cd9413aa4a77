"""Held-out examples to look at: images as they are, masked and reconstructed, and guessed words."""

import dataclasses

import numpy as np
from jaxtyping import Float32, Int32

from m3ae_tpu.data.labelled import LabelledExamples
from m3ae_tpu.data.text import Tokenizer
from m3ae_tpu.pretrained.pretrained import Pretrained
from m3ae_tpu.report.attention_maps import word_attention
from m3ae_tpu.report.fills import RATIOS, Fill, show_fills
from m3ae_tpu.report.guesses import Guesses, guess_words
from m3ae_tpu.report.uris import png_uri


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
    """One example of the report."""

    title: str
    label: str
    original: str
    """PNG as data URI; empty for a run without images."""
    fills: tuple[Fill, ...]
    """Empty for a run without images and for a model without a decoder."""
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
    """Reconstructs some held-out examples, guesses at their words, and maps their attention.

    Images are reconstructed at several mask ratios, one of them the run's own; words are hidden at
    the run's.

    Args:
        run: Its model reconstructs.
        examples: Held-out ones.
        count: Number of examples shown.
    """
    task = run.task
    shown = examples.take(choose_rows(examples.labels, count))
    rows = task.rows(shown)
    fills = show_fills(run, shown, (*RATIOS, task.masking.image_mask_ratio))
    has_guesses = task.has_texts and run.model.decoder is not None
    guesses = guess_words(run, rows) if has_guesses else None
    maps = word_attention(run.model, rows, task, run.mesh) if task.has_pairs else None
    results = []
    for row, title in enumerate(shown.titles):
        words = ()
        if task.has_texts and run.tokenizer is not None:
            own_maps = None if maps is None else maps[row]
            words = _words(shown, row, guesses, own_maps, run.tokenizer)
        results.append(
            ShownExample(
                title=title,
                label=shown.label_names[shown.labels[row]],
                original=png_uri(shown.images[row]) if task.has_images else "",
                fills=fills[row],
                words=words,
                first_word=_word_of_title(words, title),
            )
        )
    return results


def _words(
    examples: LabelledExamples,
    row: int,
    guesses: Guesses | None,
    maps: Float32[np.ndarray, "length rows columns"] | None,
    tokenizer: Tokenizer,
) -> tuple[Word, ...]:
    """Returns the tokens of a caption, with the guesses at hidden ones."""

    def read(ids: np.ndarray) -> list[str]:
        return [piece.replace("▁", " ") for piece in tokenizer.pieces(ids)]

    best: dict[int, tuple[tuple[str, float], ...]] = {}
    if guesses is not None:
        hidden = (guesses.places[row], guesses.ids[row], guesses.probs[row])
        for place, ids, probs in zip(*hidden, strict=True):
            best[int(place)] = tuple(zip(read(ids), probs.tolist(), strict=True))
    texts = read(examples.text_ids[row][examples.is_valid[row]])
    return tuple(
        Word(
            text=text,
            guesses=best.get(place, ()),
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
