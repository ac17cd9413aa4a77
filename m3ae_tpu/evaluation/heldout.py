"""The pre-training task on held-out examples: hidden patches and words, beside simple baselines."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int32, Key

from m3ae_tpu.batch import Rows
from m3ae_tpu.data.labelled import LabelledExamples
from m3ae_tpu.data.text import Tokenizer
from m3ae_tpu.evaluation.protocol import Figures, Row, Subject
from m3ae_tpu.model.inputs import Inputs
from m3ae_tpu.model.m3ae import M3AE
from m3ae_tpu.model.masking import Selection
from m3ae_tpu.model.modality import gather
from m3ae_tpu.parallel.row_map import RowMap
from m3ae_tpu.pretrained.task import ReconstructionTask

NUM_DRAWS = 2
"""Masks drawn for each example: more make the figures of words steadier and take longer."""

_SEED = 20_220_528  # Any; the same for all runs, so that their figures compare.
_OTHER = "_with_other_image"
_NO_DECODER = "The model is an encoder without a decoder: it reconstructs nothing."


def start(subject: Subject) -> Callable[[], Figures]:
    """Measures the figures of `heldout_reconstruction` on the test examples, as `heldout/...`."""
    figures = _measured(subject)
    return lambda: figures


def _measured(subject: Subject) -> Figures:
    task, tokenizer = subject.run.task, subject.run.tokenizer
    if subject.run.model.decoder is None:
        learned = {"image_loss": task.has_images, "text_accuracy": task.has_texts}
        return {
            f"left_out/heldout/{name}": _NO_DECODER
            for name, is_there in learned.items()
            if is_there
        }
    subject.report("reconstructing held-out examples")
    is_title = None if tokenizer is None else title_tokens(subject.test, tokenizer)
    figures = heldout_reconstruction(
        subject.run.model, subject.test, task, subject.run.mesh, is_title=is_title
    )
    measured = {f"heldout/{name}": value for name, value in figures.items()}
    lacks = {f"left_out/heldout/{name}": why for name, why in _lacks(figures, subject).items()}
    return measured | lacks


def _lacks(figures: Mapping[str, float], subject: Subject) -> dict[str, str]:
    """Returns why figures are not there, by name: nothing was hidden that they could measure."""
    task, test, shards = subject.run.task, subject.test, subject.test_shards.pattern
    lacks = {}
    if task.has_images and "image_loss" not in figures:
        lacks["image_loss"] = (
            f"masking.image_mask_ratio = {task.masking.image_mask_ratio} hides no patch."
        )
    elif task.has_images and "image_loss_of_visible_mean" not in figures:
        lacks["visible_mean"] = (
            f"masking.image_mask_ratio = {task.masking.image_mask_ratio} leaves no patch visible, "
            "so there is no mean of visible patches to compare with."
        )
    if task.has_texts and not test.has_caption.any():
        lacks["text_accuracy"] = f"{shards} hold no caption. Name shards with captions."
    elif task.has_texts and "text_accuracy" not in figures:
        lacks["text_accuracy"] = (
            f"masking.text_mask_ratio = {task.masking.text_mask_ratio} hid no word."
        )
    elif task.has_texts and "title_accuracy" not in figures:
        lacks["title_accuracy"] = f"No hidden word of {shards} is part of a title."
    if task.has_pairs and len(test) == 1:
        lacks["other_image"] = "One test example has no other image to compare with."
    return lacks


_OTHER_NOTE = (
    "Other image: the same words, with the image of another example, of another class as far as "
    "there are enough of them."
)
_ROWS = {
    "image_loss": functools.partial(
        Row,
        title="Error at hidden patches",
        unit="loss",
        note="Mean squared error. Visible mean: the mean colour of the visible patches.",
        level="headline",
    ),
    "text_accuracy": functools.partial(
        Row,
        title="Hidden words predicted right",
        unit="share",
        note=_OTHER_NOTE,
        level="headline",
    ),
    "title_accuracy": functools.partial(
        Row, title="Hidden words of titles predicted right", unit="share", note=_OTHER_NOTE
    ),
    "text_loss": functools.partial(
        Row, title="Cross-entropy of hidden words, nats", unit="loss", note=_OTHER_NOTE
    ),
}


def rows(figures: Mapping[str, Any]) -> list[Row]:
    """Returns the errors and accuracies, each beside its baseline."""
    shown = []
    for name, make_row in _ROWS.items():
        make_row = functools.partial(make_row, section="reconstruction")
        keys = {"pretrained": name, "visible mean": f"{name}_of_visible_mean"}
        keys["other image"] = f"{name}{_OTHER}"
        values = {
            label: figures[f"heldout/{key}"]
            for label, key in keys.items()
            if f"heldout/{key}" in figures
        }
        if f"left_out/heldout/{name}" in figures:
            shown.append(make_row(values={}, note=figures[f"left_out/heldout/{name}"]))
        elif len(values) > 1:
            shown.append(make_row(values=values))
        elif values:
            baseline = "visible_mean" if name == "image_loss" else "other_image"
            note = figures.get(f"left_out/heldout/{baseline}", "")
            shown.append(make_row(values=values, note=note))
    return shown


class _HeldoutRows(NamedTuple):
    """Examples to score, by row; None for a modality that the run has not learned."""

    rows: Rows
    other_images: Any
    """uint8, images of other examples; None for a run without pairs, or if there are none."""
    is_title: Any
    """bool [rows, length]."""
    places: Any
    """int32 [rows], place of each row among all examples; decides its masks."""


def heldout_reconstruction(
    model: M3AE,
    examples: LabelledExamples,
    task: ReconstructionTask,
    mesh: Mesh,
    *,
    is_title: Bool[np.ndarray, "examples length"] | None = None,
    num_draws: int = NUM_DRAWS,
) -> dict[str, float]:
    """Measures reconstruction with the run's own mask ratios, of the modalities it has learned.

    A run with pairs is given pairs, another one images and texts alone.

    - `image_loss`: mean squared error at hidden patches in the space of the run's targets: with
      `loss.norm_pix_loss` patches normalised one by one.
    - `image_loss_of_visible_mean`: the same for a guess of every hidden pixel, the mean colour of
      the image's visible patches. Left out if no patch is visible.
    - `text_loss`, `text_accuracy`: over all hidden words of all draws. Each word weighs the same;
      in training each example does.
    - `title_accuracy`: the same for hidden words of `is_title` alone.
    - `..._with_other_image`: the same words hidden from the same captions and the same patches
      hidden, but of another image (`other_rows`). Left out if there is only one example.

    Args:
        model: The run's model.
        examples: Held-out ones.
        task: The run's task.
        mesh: The model's.
        is_title: True for caption tokens that spell the title: much of a caption's rest can be
            guessed without the image.
        num_draws: Masks of each example.
    """
    has_others = task.has_pairs and len(examples) > 1
    batch = _HeldoutRows(
        rows=task.rows(examples),
        other_images=examples.images[other_rows(examples.labels)] if has_others else None,
        is_title=None,
        places=np.arange(len(examples), dtype=np.int32),
    )
    if task.has_texts:
        no_title = np.zeros_like(examples.is_valid)
        batch = batch._replace(is_title=no_title if is_title is None else is_title)
    score = RowMap(functools.partial(_score, task=task), mesh)
    sums: dict[str, float] = {}
    counts: dict[str, float] = {}
    for draw in range(num_draws):
        key = jax.random.fold_in(jax.random.key(_SEED), draw)
        for name, (value, count) in score((model, key), batch).items():
            # float64 on the host, in the order of the rows: the same bits on any number of devices.
            sums[name] = sums.get(name, 0.0) + float(value.sum(dtype=np.float64))
            counts[name] = counts.get(name, 0.0) + float(count.sum(dtype=np.float64))
    return {name: total / counts[name] for name, total in sums.items() if counts[name]}


type _Sums = dict[str, tuple[Float[Array, " batch"], Int32[Array, " batch"]]]
"""By figure: the sum over each row's patches or words, and the number of them."""


def _score(
    model_and_key: tuple[M3AE, Key[Array, ""]], batch: _HeldoutRows, *, task: ReconstructionTask
) -> _Sums:
    model, key = model_and_key
    inputs = task.make_inputs(batch.rows)
    masks = task.draw_masks(model, inputs, key, batch.places)
    predicted = task.reconstruct(model, inputs, masks)
    sums: _Sums = {}
    if masks.image is not None and predicted.patches is not None:
        sums |= _image_sums(model, inputs, masks.image, predicted.patches, task)
    if masks.text is not None and predicted.logits is not None:
        sums |= _text_sums(predicted.logits, inputs, masks.text, batch.is_title, "")
        if batch.other_images is not None:
            others = task.make_inputs(batch.rows._replace(images=batch.other_images))
            logits = model.reconstruct(others, masks).logits
            assert logits is not None
            sums |= _text_sums(logits, inputs, masks.text, batch.is_title, _OTHER)
    return sums


def _image_sums(
    model: M3AE, inputs: Inputs, selection: Selection, predicted: Array, task: ReconstructionTask
) -> _Sums:
    assert inputs.images is not None
    target = task.image_targets(model, inputs.images, selection.hidden)
    visible = task.image_targets(model, inputs.images, selection.visible)
    predictions = {"image_loss": predicted}
    if visible.shape[1]:
        # One value for each channel: a mean patch, noisier, would be easier to beat.
        color = visible.reshape(visible.shape[0], -1, 3).mean(axis=1)
        color = jnp.tile(color, (1, target.shape[2] // 3))[:, None]
        predictions["image_loss_of_visible_mean"] = color
    num_patches = jnp.full(target.shape[0], target.shape[1], jnp.int32)

    def error(prediction: Array) -> Array:
        difference = prediction.astype(jnp.float32) - target.astype(jnp.float32)
        return jnp.square(difference).mean(axis=2).sum(axis=1)

    return {name: (error(value), num_patches) for name, value in predictions.items()}


def _text_sums(
    logits: Array, inputs: Inputs, selection: Selection, is_title: Array, suffix: str
) -> _Sums:
    assert inputs.text_ids is not None
    assert inputs.is_valid is not None
    ids, is_word, is_title = (
        gather(array, selection.hidden) for array in (inputs.text_ids, inputs.is_valid, is_title)
    )
    is_title &= is_word
    logits = logits.astype(jnp.float32)
    nll = jax.nn.logsumexp(logits, axis=2)
    nll -= jnp.take_along_axis(logits, ids[..., None], axis=2)[..., 0]
    is_right = jnp.argmax(logits, axis=2) == ids

    def count(is_counted: Array) -> Array:
        return is_counted.sum(axis=1, dtype=jnp.int32)

    def number(is_counted: Array) -> Array:
        return count(is_counted).astype(jnp.float32)

    return {
        f"text_loss{suffix}": (jnp.where(is_word, nll, 0.0).sum(axis=1), count(is_word)),
        f"text_accuracy{suffix}": (number(is_right & is_word), count(is_word)),
        f"title_accuracy{suffix}": (number(is_right & is_title), count(is_title)),
    }


def other_rows(labels: Int32[np.ndarray, " examples"]) -> Int32[np.ndarray, " examples"]:
    """Returns for each of two or more examples the index of another one, and each index once.

    It is of another class wherever no class holds over half of the examples.
    """
    num_examples = len(labels)
    by_class = np.argsort(labels, kind="stable")
    # A shift along the sorted rows by the largest class's size leaves every class.
    shift = min(int(np.bincount(labels).max()), num_examples // 2)
    others = np.empty(num_examples, np.int32)
    others[by_class] = np.roll(by_class, -shift)
    return others


def title_tokens(
    examples: LabelledExamples, tokenizer: Tokenizer
) -> Bool[np.ndarray, "examples length"]:
    """Returns True for the caption tokens that spell an example's title."""
    length = examples.text_ids.shape[1]
    ids, is_piece, _ = tokenizer.encode(examples.titles, length)
    titles = [row[pieces].tolist() for row, pieces in zip(ids, is_piece, strict=True)]
    return title_positions(examples.text_ids, titles)


def title_positions(
    text_ids: Int32[np.ndarray, "examples length"], titles: Sequence[Sequence[int]]
) -> Bool[np.ndarray, "examples length"]:
    """Returns True for the tokens of each caption's first occurrence of its title, if there is one.

    Args:
        text_ids: The captions' token ids.
        titles: Token ids of each example's title, not padded.
    """
    found = np.zeros(text_ids.shape, bool)
    for row, title in enumerate(titles):
        wanted = np.asarray(title, np.int32)
        if not 0 < len(wanted) <= text_ids.shape[1]:
            continue
        windows = np.lib.stride_tricks.sliding_window_view(text_ids[row], len(wanted))
        hits = np.flatnonzero((windows == wanted[None, :]).all(axis=1))
        if len(hits):
            found[row, hits[0] : hits[0] + len(wanted)] = True
    return found
