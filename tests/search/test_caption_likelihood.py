"""Guards the likelihood of a text beside images: hidden words, images that matter, and refusals."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from small_run import CONFIG, trained_run, with_source

from m3ae_tpu.errors import UserError
from m3ae_tpu.model.inputs import Inputs
from m3ae_tpu.model.masking import Masks, Selection
from m3ae_tpu.search.caption_likelihood import CaptionScorer

RUN = trained_run()
IMAGES = np.random.default_rng(0).integers(0, 256, (9, 32, 32, 3), np.uint8)
TEXT = "two dogs on a beach"
SCORER = CaptionScorer(RUN, num_draws=4)


def test_every_token_is_hidden_about_equally_often():
    num_tokens = int(SCORER.hide(TEXT).is_valid.sum())
    words = CaptionScorer(RUN, num_draws=num_tokens).hide(TEXT)
    counts = np.bincount(words.hidden.ravel(), minlength=len(words.ids))
    assert set(counts[:num_tokens]) == {round(num_tokens * 0.75 + 0.49)}
    for visible, hidden in zip(words.visible, words.hidden, strict=True):
        assert sorted([*visible, *hidden]) == list(range(len(words.ids)))
        assert words.is_valid[hidden].any()


@pytest.mark.parametrize("text", [TEXT, "a", "words " * 20])
def test_the_score_is_the_models_log_probability(text):
    words = SCORER.hide(text)
    pixels = RUN.task.normalizer(jnp.asarray(IMAGES[:8]), jnp.float32)

    def repeated(array):
        return jnp.broadcast_to(jnp.asarray(array, jnp.int32)[None], (8, len(array)))

    ids, expected = repeated(words.ids[words.is_valid]), []
    every = Selection(repeated(range(16)), repeated(range(0)))
    for hidden in words.hidden:
        hidden = hidden[words.is_valid[hidden]]
        visible = np.setdiff1d(np.arange(ids.shape[1]), hidden)
        masks = Masks(every, Selection(repeated(visible), repeated(hidden)))
        logits = RUN.model.reconstruct(Inputs(pixels, ids), masks).logits
        logits = np.asarray(logits, np.float64)
        log_probs = logits - np.log(np.exp(logits).sum(axis=2, keepdims=True))
        expected += [log_probs[:, range(len(hidden)), words.ids[hidden]].mean(axis=1)]
    np.testing.assert_allclose(
        SCORER(IMAGES, text)[:8], np.mean(expected, axis=0).astype(np.float32), atol=1e-4
    )


def test_an_image_matters_and_other_images_do_not():
    together = SCORER(IMAGES, TEXT)
    assert together.std() > 0
    np.testing.assert_allclose(SCORER(IMAGES[5:6], TEXT)[0], together[5], atol=1e-5)
    assert abs(SCORER.alone(TEXT) - together[0]) > 1e-6


def test_a_class_has_the_mean_of_its_prompts_less_their_own_likelihood():
    scores = SCORER.classify(IMAGES, {"dogs": [TEXT, "a dog"], "cats": ["a cat"]})
    assert scores.shape == (9, 2)
    expected = [SCORER(IMAGES, text) - SCORER.alone(text) for text in (TEXT, "a dog")]
    np.testing.assert_allclose(scores[:, 0], np.mean(expected, axis=0), atol=1e-5)


def test_a_model_that_cannot_score_is_refused():
    with pytest.raises(UserError, match="has not learned images with texts"):
        CaptionScorer(trained_run(with_source("image")))
    decoder = dataclasses.replace(CONFIG.model.decoder, num_layers=0)
    model = dataclasses.replace(CONFIG.model, decoder=decoder)
    with pytest.raises(UserError, match="the model has no decoder"):
        CaptionScorer(trained_run(dataclasses.replace(CONFIG, model=model)))
    with pytest.raises(UserError, match=r"text = ' ' has no word"):
        SCORER(IMAGES, " ")
