"""Guards the words that an image helps: their probabilities, their gains, and what a run lacks."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from small_run import CONFIG, trained_run, with_source, without_decoder

from m3ae_tpu.data.labelled import LabelledExamples
from m3ae_tpu.data.text import Tokenizer
from m3ae_tpu.report.fills import SEED
from m3ae_tpu.report.guesses import guess_words
from m3ae_tpu.report.word_gains import (
    Caption,
    Guess,
    HiddenPiece,
    measure_word_gains,
    whole_words,
)
from m3ae_tpu.report.word_section import word_section

RUN = trained_run()
CAPTIONS = ("a red apple", "an image of a dog", "an old house", "two cats") * 2


@pytest.fixture(scope="module")
def examples():
    text_ids, is_valid, _ = Tokenizer(CONFIG.data.tokenizer).encode(CAPTIONS, 8)
    return LabelledExamples(
        images=np.random.default_rng(2).integers(0, 256, (8, 32, 32, 3), np.uint8),
        text_ids=text_ids,
        is_valid=is_valid,
        labels=np.array([0, 1, 2, 1] * 2, np.int32),
        label_names=("food", "animals", "objects"),
        titles=("red apple", "dog", "house", "<cats>") * 2,
        groups=np.arange(8, dtype=np.int32),
        captions=CAPTIONS,
    )


def piece(right, wrong, text=" red", kind="title words"):
    guesses = (Guess(text=" blue", prob=0.5, true_log_prob=value) for value in (right, wrong))
    return HiddenPiece(text, text.strip(), kind, *guesses)


def test_probabilities_are_the_models(examples):
    rows = RUN.task.rows(examples)
    guesses = guess_words(RUN, rows)
    inputs = RUN.task.make_inputs(jax.tree.map(jnp.asarray, rows))
    key = jax.random.key(SEED)
    masks = RUN.task.draw_masks(RUN.model, inputs, key, jnp.arange(8, dtype=jnp.int32))
    logits = eqx.filter_jit(RUN.model.reconstruct)(inputs, masks).logits
    assert logits is not None
    assert masks.text is not None
    hidden = np.asarray(masks.text.hidden)
    np.testing.assert_array_equal(guesses.places, hidden)
    wanted = scipy.special.log_softmax(np.asarray(logits, np.float64), axis=2)
    true = np.take_along_axis(examples.text_ids, hidden, axis=1)
    wanted_true = np.take_along_axis(wanted, true[..., None], axis=2)[..., 0]
    np.testing.assert_allclose(guesses.log_prob, wanted_true, rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(guesses.probs[..., 0], np.exp(wanted.max(axis=2)), rtol=2e-3)


def test_words_are_predicted_beside_their_own_and_beside_another_image(examples):
    gains = measure_word_gains(RUN, examples)
    assert not isinstance(gains, str)
    captions = [*gains.drawn, *gains.chosen]
    assert len(gains.drawn) == 4
    assert len(gains.chosen) == 2
    assert gains.chosen[0].gain >= gains.chosen[1].gain
    assert gains.total.num_captions == 8
    for caption in captions:
        labels = gains.examples.labels
        assert labels[caption.example] != labels[caption.other]
        assert any(word.gain != 0 for word in caption.hidden.values())
        assert "".join(caption.pieces).strip() == gains.examples.captions[caption.example]
    page = word_section(gains)
    assert page.count("<article") == 6
    assert "&lt;cats&gt;" in page
    assert "Captions drawn at random" in page
    assert "Chosen: the captions that gain most" in page
    assert sum(kind.num_pieces for kind in gains.kinds) == gains.total.num_pieces


def test_a_gain_counts_captions_as_the_units_that_are_drawn(examples, monkeypatch):
    """Tokens 1, 2 and 6 nats more probable, the first two in one caption."""
    made = [
        Caption(example=row, other=1 - row, pieces=(" red", " red"), hidden=dict(enumerate(hidden)))
        for row, hidden in enumerate([(piece(-1.0, -2.0), piece(-1.0, -3.0)), (piece(-1.0, -7.0),)])
    ]
    monkeypatch.setattr("m3ae_tpu.report.word_gains._captions", lambda *_: made)
    gains = measure_word_gains(RUN, examples)
    assert not isinstance(gains, str)
    assert gains.total.mean == pytest.approx(3)
    # Deviations of the captions: (1 - 3) + (2 - 3) = -3, and 3; sqrt((9 + 9) * 2 / 1) / 3.
    assert gains.total.error == pytest.approx(2)
    assert gains.total.probs == pytest.approx((np.exp(-1), np.exp(-4)))
    assert gains.words == ()  # Hidden in two captions only.
    assert "20.09 times as probable" in word_section(gains)


def test_pieces_belong_to_words_and_punctuation_stands_alone():
    pieces = [" A", " roll", "ed", "-", "up", ":", " Sun", "rise", " ", "s", "k"]
    words = ["a", "rolled", "rolled", "-", "up", ":", "sunrise", "sunrise", "", "sk", "sk"]
    assert whole_words(pieces) == words
    assert whole_words([]) == []


def test_what_a_run_or_its_examples_lack_is_said(examples):
    hides_nothing = dataclasses.replace(
        CONFIG, masking=dataclasses.replace(CONFIG.masking, text_mask_ratio=0.0)
    )
    no_caption = dataclasses.replace(examples, captions=("",) * 8)
    image_only, text_only = (trained_run(with_source(kind)) for kind in ("image", "text"))
    reasons = [
        (image_only, examples, "images with captions"),
        (text_only, examples, "images with captions"),
        (trained_run(without_decoder()), examples, "without a decoder"),
        (RUN, examples.take(np.arange(1)), "two test examples"),
        (RUN, no_caption, "two test examples"),
        (trained_run(hides_nothing), examples, "text_mask_ratio = 0.0"),
    ]
    for run, test, part in reasons:
        reason = measure_word_gains(run, test)
        assert isinstance(reason, str)
        assert part in reason
        assert word_section(reason).startswith('<p class="missing">')
