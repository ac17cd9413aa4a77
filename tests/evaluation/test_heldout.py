"""Guards the figures of the pre-training task on held-out examples, and the images of it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m3ae_tpu.config import (
    DataConfig,
    LossConfig,
    ModelConfig,
    PretrainConfig,
    SourceConfig,
    TransformerConfig,
)
from m3ae_tpu.data.labelled import LabelledExamples
from m3ae_tpu.data.text import Tokenizer
from m3ae_tpu.evaluation import heldout
from m3ae_tpu.model.m3ae import M3AE
from m3ae_tpu.report.attention_maps import word_attention
from m3ae_tpu.report.examples import choose_rows, make_pictures

SMALL = TransformerConfig(num_layers=2, width=16, num_heads=2)
CONFIG = PretrainConfig(
    model=ModelConfig(
        patch_size=8, vocab_size=4_000, encoder=SMALL, decoder=SMALL, compute_dtype="float32"
    ),
    data=DataConfig(image_size=32, sources=(SourceConfig(text_length=8),)),
)


@pytest.fixture(scope="module")
def model():
    # Filled by NumPy: drawing a model's own initial values takes a long time to compile.
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: M3AE(CONFIG.model, key=jax.random.key(0)))
    return jax.tree.map(
        lambda leaf: jnp.asarray(random.normal(0, 0.2, leaf.shape), leaf.dtype), shapes
    )


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer("starter/tokenizer.model")


@pytest.fixture(scope="module")
def examples(tokenizer):
    captions = (
        "a red apple",
        "a image of a dog",
        "an old house",
        "two cats",
        "",
        "a green tree",
        "a dog",
    )
    text, text_valid, _ = tokenizer.encode(captions, 8)
    names = tuple("abcdefg")
    return LabelledExamples(
        images=np.random.default_rng(2).integers(0, 256, (7, 32, 32, 3), np.uint8),
        text_ids=text,
        is_valid=text_valid,
        label=np.array([0, 1, 2, 1, 2, 0, 1], np.int32),
        label_names=("food", "animals", "objects"),
        id=names,
        title=("red apple", "dog", "house", "cats", "", "tree", "dog"),
        group=names,
        caption=captions,
    )


def with_source(kind):
    source = SourceConfig(kind=kind, text_length=8)
    return dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, sources=(source,)))


def test_every_figure_is_there_and_no_batch_size_changes_it(model, examples):
    titles = np.zeros_like(examples.is_valid)
    titles[:, 1] = examples.is_valid[:, 1]
    one = heldout.heldout_reconstruction(
        model, examples, CONFIG, title_tokens=titles, num_draws=2, batch_size=3
    )
    other = heldout.heldout_reconstruction(
        model, examples, CONFIG, title_tokens=titles, num_draws=2, batch_size=7
    )
    words = [
        f"{name}{suffix}"
        for name in ("text_loss", "text_accuracy")
        for suffix in ("", "_with_other_image")
    ]
    assert {"image_loss", "image_loss_of_visible_mean", *words} <= one.keys()
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert other[name] == pytest.approx(value, rel=1e-5), name


@pytest.mark.parametrize(
    ("kind", "present", "absent"), [("image", "image_loss", "text"), ("text", "text_loss", "image")]
)
def test_runs_of_one_modality_have_its_figures_only(model, examples, kind, present, absent):
    figures = heldout.heldout_reconstruction(
        model, examples, with_source(kind), num_draws=1, batch_size=7
    )
    assert present in figures
    assert [name for name in figures if name.startswith(absent) or "other" in name] == []


def test_plain_pictures_are_guessed_exactly_by_their_visible_mean(model, examples):
    colours = np.random.default_rng(0).integers(0, 256, (7, 1, 1, 3), np.uint8)
    plain = dataclasses.replace(examples, images=np.broadcast_to(colours, (7, 32, 32, 3)).copy())
    figures = heldout.heldout_reconstruction(
        model, plain, with_source("image"), num_draws=1, batch_size=7
    )
    assert figures["image_loss_of_visible_mean"] == pytest.approx(0, abs=1e-9)
    assert figures["image_loss"] > 0.01


def test_baseline_lives_in_the_space_of_the_targets(model, examples):
    config = dataclasses.replace(with_source("image"), loss=LossConfig(norm_pix_loss=True))
    figures = heldout.heldout_reconstruction(model, examples, config, num_draws=1, batch_size=7)
    # Patches have mean 0 there, and a variance of 1 that divides by n - 1 for n = 8 * 8 * 3 values.
    assert figures["image_loss_of_visible_mean"] == pytest.approx(191 / 192, rel=1e-2)


@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2], [2, 1, 0, 1, 2, 0], [0, 1]])
def test_wrong_picture_is_of_another_class(labels):
    labels = np.array(labels, np.int32)
    others = heldout.other_rows(labels)
    assert sorted(others) == list(range(len(labels)))
    assert np.all(labels[others] != labels)


def test_wrong_picture_is_another_one_even_in_a_single_class():
    others = heldout.other_rows(np.zeros(5, np.int32))
    assert sorted(others) == list(range(5))
    assert np.all(others != np.arange(5))


def test_one_example_has_no_other_picture():
    with pytest.raises(ValueError, match="One example has no other image"):
        heldout.other_rows(np.zeros(1, np.int32))


def test_title_is_found_where_it_stands():
    text = np.array([[5, 8, 9, 8, 9, 0], [1, 2, 3, 4, 5, 6]], np.int32)
    found = heldout.title_positions(text, [[8, 9], [7]])
    np.testing.assert_array_equal(found, [[False, True, True, False, False, False], [False] * 6])


def test_attention_of_a_word_sums_to_one_over_the_patches(model, examples):
    maps = word_attention(model, examples.images, examples.text_ids, examples.is_valid, CONFIG.data)
    assert maps.shape == (7, 8, 4, 4)
    np.testing.assert_allclose(maps.sum(axis=(2, 3)), 1, rtol=1e-5)


def test_chosen_examples_take_turns_between_classes():
    np.testing.assert_array_equal(choose_rows(np.array([1, 1, 0, 2, 0], np.int32), 4), [2, 0, 3, 4])


def test_pictures_show_holes_and_guesses_for_hidden_words_only(model, examples, tokenizer):
    pictures = make_pictures(model, examples, CONFIG, tokenizer, count=3)
    assert [picture.title for picture in pictures] == ["red apple", "dog", "house"]
    for picture in pictures:
        assert len({picture.original, picture.masked, picture.reconstructed}) == 3
        hidden = [word for word in picture.words if word.guesses]
        assert 0 < len(hidden) < len(picture.words) or len(picture.words) < 4
        assert all(word.heat.startswith("data:image/png;base64,") for word in picture.words)
        assert all(prob <= 1 for word in hidden for _, prob in word.guesses)
    assert "".join(word.text for word in pictures[0].words).strip() == "a red apple"


def test_all_hidden_patches_are_scored_however_few_are_trained_on(model, examples):
    config = with_source("image")
    masking = dataclasses.replace(config.masking, image_predicted_share=0.5)
    few = dataclasses.replace(config, masking=masking)
    figures = [
        heldout.heldout_reconstruction(model, examples, each, num_draws=1, batch_size=7)
        for each in (config, few)
    ]
    assert figures[0] == figures[1]
