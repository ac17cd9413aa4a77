"""The pre-training task on held-out examples: every example once per draw of masks, fixed draws."""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int32, Key

from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.data.labelled import LabelledExamples
from m3ae_tpu.model import masking, patches
from m3ae_tpu.model.m3ae import M3AE
from m3ae_tpu.train.reconstruction import image_targets

NUM_DRAWS = 2
"""Masks drawn for each example; more make the figures of words steadier and cost their own time."""

_SEED = 20_220_528  # Any; the same for all runs, so that their figures compare.


def heldout_reconstruction(
    model: M3AE,
    examples: LabelledExamples,
    config: PretrainConfig,
    *,
    title_tokens: Bool[np.ndarray, "examples length"] | None = None,
    num_draws: int = NUM_DRAWS,
    batch_size: int = 64,
) -> dict[str, float]:
    """Measures reconstruction with the run's own mask ratios, for the modalities the run has
    learned.

    A run with pairs is given pairs, another one images and texts alone. Keys, in order:

    - `image_loss`: mean squared error of hidden patches in the run's own target space, so with
      `loss.norm_pix_loss` of patches normalised one by one.
    - `image_loss_of_visible_mean`: the same for guessing, for every hidden pixel, the mean colour
      of the same image's visible patches, in the same space; only where patches are visible.
    - `text_loss`, `text_accuracy`: over all hidden words of all draws, each word weighing the same
      (in training every example does).
    - `text_loss_with_other_image`, `text_accuracy_with_other_image`: the same words hidden from the
      same captions, and the same patches hidden, but of a image of another class.
    - `title_accuracy`, `title_accuracy_with_other_image`: of `title_tokens` alone.

    Args:
        model: Trained with `config`.
        examples: Test transform, main captions.
        config: The run's.
        title_tokens: Tokens that say what is shown; the rest of a caption can often be guessed
            without looking.
        num_draws: Masks of each example.
        batch_size: Examples at a time; changes no mask.
    """
    kinds = {source.kind for source in config.data.sources}
    has_image, has_text = bool(kinds & {"paired", "image"}), bool(kinds & {"paired", "text"})
    num_examples = len(examples.label)
    if title_tokens is None:
        title_tokens = np.zeros_like(examples.is_valid)
    arrays = (examples.images, examples.text_ids, examples.is_valid, title_tokens)
    other_images = (
        examples.images[other_rows(examples.label)] if "paired" in kinds else examples.images
    )
    score = functools.partial(
        _score, config=config, is_paired="paired" in kinds, has=(has_image, has_text)
    )
    totals: dict[str, float] = {}
    for draw in range(num_draws):
        key = jax.random.fold_in(jax.random.key(_SEED), draw)
        for start in range(0, num_examples, batch_size):
            rows = np.arange(start, start + batch_size, dtype=np.int32)
            # The last batch is filled up with copies of the last example, which do not count.
            taken = np.minimum(rows, num_examples - 1)
            batch = [array[taken] for array in (*arrays, other_images)]
            for name, value in score(model, key, rows, rows < num_examples, *batch).items():
                totals[name] = totals.get(name, 0.0) + float(value)
    return _means(totals)


def _means(totals: dict[str, float]) -> dict[str, float]:
    """Divides sums by the number of patches, words or title tokens that they run over."""
    numbers = {name: totals.pop(name) for name in ("patches", "words", "titles")}
    means = {}
    for name, value in totals.items():
        number = numbers[
            "patches"
            if name.startswith("image")
            else "titles"
            if name.startswith("title")
            else "words"
        ]
        if number:
            means[name] = value / number
    return means


@functools.partial(jax.jit, static_argnames=("config", "is_paired", "has"))
def _score(
    model: M3AE,
    key: Key[Array, ""],
    rows: Array,
    counts: Array,
    images: Array,
    text: Array,
    text_valid: Array,
    title_tokens: Array,
    other_images: Array,
    *,
    config: PretrainConfig,
    is_paired: bool,
    has: tuple[bool, bool],
) -> dict[str, Array]:
    """Returns sums over the rows that count, and over how many patches, words and title tokens they
    run.
    """
    has_image, has_text = has
    image_key, text_key = jax.random.split(key)
    # One draw for a whole batch would depend on how examples are batched; all hidden patches are
    # scored.
    how = dataclasses.replace(config.masking, draw="per_example", image_predicted_share=1.0)
    zero = jnp.zeros(())
    sums = {"patches": zero, "words": zero, "titles": zero}
    image_selection = text_selection = logits = None
    pixels = _normalize(images, config)
    if has_image:
        num_patches = int(np.prod(model.grid(pixels)))
        image_selection = masking.select_patches(
            masking.row_keys(image_key, rows), num_patches, how
        )
    if has_text:
        text_selection = masking.select_tokens(masking.row_keys(text_key, rows), text_valid, how)
    if is_paired:
        guess = model.reconstruct(pixels, image_selection, text, text_valid, text_selection)
        guessed, logits = guess.patches, guess.logits
    else:
        guessed = (
            model.reconstruct(pixels, image_selection, None, None, None).patches
            if has_image
            else None
        )
        if has_text:
            logits = model.reconstruct(None, None, text, text_valid, text_selection).logits
    if image_selection is not None and guessed is not None:
        target = image_targets(pixels, image_selection, model, config)
        opposite = masking.Selection(image_selection.hidden, image_selection.visible)
        visible = image_targets(pixels, opposite, model, config)
        predictions = {"image_loss": guessed}
        if visible.shape[1]:
            # One value for each channel: a mean patch, noisier, would be easier to beat.
            color = visible.reshape(visible.shape[0], -1, 3).mean(axis=1)
            predictions["image_loss_of_visible_mean"] = jnp.tile(color, (1, target.shape[2] // 3))[
                :, None
            ]
        weights = counts.astype(jnp.float32)
        sums["patches"] = weights.sum() * target.shape[1]
        for name, prediction in predictions.items():
            errors = jnp.square(prediction.astype(jnp.float32) - target.astype(jnp.float32)).mean(
                axis=2
            )
            sums[name] = (errors.sum(axis=1) * weights).sum()
    if text_selection is not None and logits is not None:
        ids = jnp.take_along_axis(text, text_selection.hidden, axis=1)
        is_word = jnp.take_along_axis(text_valid, text_selection.hidden, axis=1) & counts[:, None]
        is_title = jnp.take_along_axis(title_tokens, text_selection.hidden, axis=1) & is_word
        sums["words"] = is_word.sum().astype(jnp.float32)
        sums["titles"] = is_title.sum().astype(jnp.float32)
        sums |= _text_sums(logits, ids, is_word, is_title, "")
        if is_paired:
            other = _normalize(other_images, config)
            logits = model.reconstruct(
                other, image_selection, text, text_valid, text_selection
            ).logits
            assert logits is not None
            sums |= _text_sums(logits, ids, is_word, is_title, "_with_other_image")
    return sums


def _normalize(images: Array, config: PretrainConfig) -> Array:
    return patches.normalize_images(
        images, config.data.image_mean, config.data.image_std, jnp.float32
    )


def _text_sums(
    logits: Array, ids: Array, is_word: Array, is_title: Array, suffix: str
) -> dict[str, Array]:
    logits = logits.astype(jnp.float32)
    nll = (
        jax.nn.logsumexp(logits, axis=2)
        - jnp.take_along_axis(logits, ids[..., None], axis=2)[..., 0]
    )
    is_right = jnp.argmax(logits, axis=2) == ids
    return {
        f"text_loss{suffix}": jnp.where(is_word, nll, 0.0).sum(),
        f"text_accuracy{suffix}": (is_right & is_word).sum().astype(jnp.float32),
        f"title_accuracy{suffix}": (is_right & is_title).sum().astype(jnp.float32),
    }


def other_rows(labels: Int32[np.ndarray, " examples"]) -> Int32[np.ndarray, " examples"]:
    """Returns for each example another one, each used once: of another class where no class holds
    over half.

    Raises:
        ValueError: there is only one example.
    """
    num_examples = len(labels)
    if num_examples < 2:
        raise ValueError("One example has no other image. Give two or more.")
    by_class = np.argsort(labels, kind="stable")
    # A shift along the sorted rows by the largest class's size leaves every class.
    shift = min(int(np.bincount(labels).max()), num_examples // 2)
    others = np.empty(num_examples, np.int32)
    others[by_class] = np.roll(by_class, -shift)
    return others


def title_positions(
    text: Int32[np.ndarray, "examples length"], titles: Sequence[Sequence[int]]
) -> Bool[np.ndarray, "examples length"]:
    """Returns which tokens of each caption spell its title, at its first occurrence; none where it
    does not occur.

    Args:
        text: Piece ids.
        titles: Piece ids of each example's title, not padded.
    """
    found = np.zeros(text.shape, bool)
    for row, title in enumerate(titles):
        wanted = np.asarray(title, np.int32)
        if not 0 < len(wanted) <= text.shape[1]:
            continue
        windows = np.lib.stride_tricks.sliding_window_view(text[row], len(wanted))
        hits = np.flatnonzero((windows == wanted[None, :]).all(axis=1))
        if len(hits):
            found[row, hits[0] : hits[0] + len(wanted)] = True
    return found
