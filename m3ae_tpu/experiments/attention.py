"""Attention between the words of a caption and the patches of its image, in both directions."""

import html

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from m3ae_tpu.data.labelled import LabelledExamples
from m3ae_tpu.errors import require
from m3ae_tpu.evaluation.heldout import title_tokens
from m3ae_tpu.page import section
from m3ae_tpu.pretrained.pretrained import Pretrained
from m3ae_tpu.report.attention_maps import patch_attention, word_attention
from m3ae_tpu.report.examples import choose_rows, show_examples
from m3ae_tpu.report.sections import attention as word_cards
from m3ae_tpu.report.uris import png_uri

FIGURES = {
    "title_on_subject": "attention of title words to the subject's patches, relative to an even "
    "spread",
    "subject_on_title": "attention of the subject's patches to title words, relative to an even "
    "spread",
}
_MOST_EXAMPLES = 300
_SHOWN_EXAMPLES, _SHOWN_PATCHES = 6, 3
_FLAT = 8.0  # Deviation of the pixels of a patch of plain background, of 255.


def figures(run: Pretrained, examples: LabelledExamples) -> dict[str, float]:
    """Returns the figures of `FIGURES`: 1 is attention that does not care; more points there.

    The subject's patches are those that are not plain background. Examples count whose caption
    names their title and whose image has both subject and background.

    Raises:
        UserError: the model has not learned pairs, or no example counts.
    """
    examples = with_pairs(run, examples)
    is_title = title_tokens(examples, run.require_tokenizer())
    is_subject = subject_patches(examples.images, run.model.patch_size)
    counted = is_title.any(axis=1) & is_subject.any(axis=1) & ~is_subject.all(axis=1)
    chosen = np.flatnonzero(counted)[:_MOST_EXAMPLES]
    require(
        len(chosen) > 0,
        "No test example has a caption that names its title. Name shards with captions and titles.",
    )
    examples, is_title, is_subject = examples.take(chosen), is_title[chosen], is_subject[chosen]
    rows = run.task.rows(examples)
    to_patches = word_attention(run.model, rows, run.task, run.mesh)
    to_patches = to_patches.reshape(*is_title.shape, -1)
    to_words = patch_attention(run.model, rows, run.task, run.mesh)
    return {
        "title_on_subject": _gain(to_patches, is_title, is_subject, np.ones_like(is_subject)),
        "subject_on_title": _gain(to_words, is_subject, is_title, examples.is_valid),
    }


def with_pairs(run: Pretrained, examples: LabelledExamples) -> LabelledExamples:
    """Returns the examples with captions.

    Raises:
        UserError: there are none, or the model has not learned pairs.
    """
    require(
        run.task.has_pairs,
        "The model has not learned images with captions together. Name one that has: --model=...",
    )
    examples = examples.with_captions()
    require(len(examples) > 0, "The test shards hold no caption. Name shards with captions.")
    return examples


def subject_patches(
    images: UInt8[np.ndarray, "examples size size 3"], patch_size: int
) -> Bool[np.ndarray, "examples patches"]:
    """Returns True for patches that are not plain background: their pixels differ."""
    count, size = images.shape[:2]
    side = size // patch_size
    tiles = images.astype(np.float32).reshape(count, side, patch_size, side, patch_size, 3)
    return (tiles.std(axis=(2, 4)).max(axis=3) > _FLAT).reshape(count, -1)


def show(run: Pretrained, examples: LabelledExamples) -> str:
    """Returns sections of a page, as HTML: words to patches, then patches to words."""
    examples = with_pairs(run, examples)
    words = word_cards(show_examples(run, examples, count=_SHOWN_EXAMPLES))
    shown = examples.take(choose_rows(examples.labels, _SHOWN_EXAMPLES))
    weights = patch_attention(run.model, run.task.rows(shown), run.task, run.mesh)
    is_subject = subject_patches(shown.images, run.model.patch_size)
    cards = [
        _card(run, shown, number, weights[number], is_subject[number])
        for number in range(len(shown))
    ]
    patches = (
        "<p>Framed patches and the words of the caption, shaded by the patch's attention to them. "
        "For each image the patches of the subject are shown that prefer some words most.</p>"
        f'<div class="attentions">{"".join(cards)}</div>'
    )
    return "\n".join(
        [
            section("words", "From a word to patches", words),
            section("patches", "From a patch to words", patches),
        ]
    )


def _card(
    run: Pretrained,
    examples: LabelledExamples,
    number: int,
    weights: Float32[np.ndarray, "patches length"],
    is_subject: Bool[np.ndarray, " patches"],
) -> str:
    is_valid = examples.is_valid[number]
    pieces = run.require_tokenizer().pieces(examples.text_ids[number][is_valid])
    to_words = weights[:, is_valid]
    peak = np.where(is_subject, to_words.max(axis=1), -1.0)
    patch = run.model.patch_size
    columns = examples.images.shape[2] // patch
    lines = []
    for place in np.argsort(-peak, kind="stable")[:_SHOWN_PATCHES]:
        image = examples.images[number].copy()
        row, column = (int(index) * patch for index in divmod(int(place), columns))
        _frame(image, row, column, patch)
        largest = max(float(to_words[place].max()), 1e-12)
        words = "".join(
            f'<span style="background: color-mix(in srgb, var(--second) '
            f'{100 * float(weight) / largest:.0f}%, transparent)">'
            f"{html.escape(piece.replace('▁', ' '))}</span>"
            for piece, weight in zip(pieces, to_words[place], strict=True)
        )
        lines.append(
            f'<div class="patch-row"><img class="image" src="{png_uri(image)}" alt="">'
            f'<p class="shaded">{words}</p></div>'
        )
    title = html.escape(examples.titles[number] or "")
    return f'<article class="card attention"><h3>{title}</h3>{"".join(lines)}</article>'


def _frame(image: UInt8[np.ndarray, "size size 3"], row: int, column: int, side: int) -> None:
    """Draws the edge of a patch into an image."""
    colour = np.array([235, 60, 20], np.uint8)
    rows, columns = slice(row, row + side), slice(column, column + side)
    image[[row, row + side - 1], columns] = colour
    image[rows, [column, column + side - 1]] = colour


def _gain(
    weights: Float32[np.ndarray, "examples queries keys"],
    is_query: Bool[np.ndarray, "examples queries"],
    is_key: Bool[np.ndarray, "examples keys"],
    exists: Bool[np.ndarray, "examples keys"],
) -> float:
    """Returns the attention of queries to keys over what an even spread gives, mean of examples."""
    on_keys = (weights * is_key[:, None]).sum(axis=2)
    of_queries = (on_keys * is_query).sum(axis=1) / is_query.sum(axis=1)
    return float(np.mean(of_queries / (is_key.sum(axis=1) / exists.sum(axis=1))))
