"""Guards the examples of the report: what is hidden, guessed and attended to."""

import base64
import io

import numpy as np
import PIL.Image
import pytest
from small_run import CONFIG, trained_run, without_decoder

from m3ae_tpu.data.labelled import LabelledExamples
from m3ae_tpu.data.text import Tokenizer
from m3ae_tpu.pretrained.task import ReconstructionTask
from m3ae_tpu.report.attention_maps import word_attention
from m3ae_tpu.report.examples import attention_uri, choose_rows, show_examples

RUN = trained_run()
TOKENIZER = Tokenizer(CONFIG.data.tokenizer)


@pytest.fixture(scope="module")
def examples():
    captions = ("a red apple", "an image of a dog", "an old house", "two cats")
    text_ids, is_valid, _ = TOKENIZER.encode(captions, 8)
    return LabelledExamples(
        images=np.random.default_rng(2).integers(0, 256, (4, 32, 32, 3), np.uint8),
        text_ids=text_ids,
        is_valid=is_valid,
        labels=np.array([0, 1, 2, 1], np.int32),
        label_names=("food", "animals", "objects"),
        titles=("red apple", "dog", "house", "cats"),
        groups=np.arange(4, dtype=np.int32),
        captions=captions,
    )


def pixels(uri):
    return np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def test_examples_are_taken_from_each_class_in_turn():
    np.testing.assert_array_equal(choose_rows(np.array([1, 1, 0, 2, 0], np.int32), 4), [2, 0, 3, 4])


def test_visible_patches_are_shown_as_they_are_and_hidden_words_with_guesses(examples):
    shown = show_examples(RUN, examples, count=3)
    assert [example.title for example in shown] == ["red apple", "dog", "house"]
    for example in shown:
        original = pixels(example.original)
        # Of 16 patches: half, the run's three quarters, and 0.9, which leaves int(1.6) visible.
        assert [fill.share for fill in example.fills] == [0.5, 0.75, 15 / 16]
        assert [fill.is_own for fill in example.fills] == [False, True, False]
        was_visible = np.ones((32, 32), bool)
        for fill, num_visible in zip(example.fills, (8, 4, 1), strict=True):
            masked, reconstructed = pixels(fill.masked), pixels(fill.reconstructed)
            is_visible = masked[..., 3] == 255
            assert is_visible.sum() == num_visible * 8 * 8
            assert not (is_visible & ~was_visible).any()
            np.testing.assert_array_equal(masked[is_visible][:, :3], original[is_visible])
            np.testing.assert_array_equal(reconstructed[is_visible], original[is_visible])
            assert not np.array_equal(reconstructed, original)
            was_visible = is_visible
        hidden = [word for word in example.words if word.guesses]
        assert 0 < len(hidden) < len(example.words) or len(example.words) < 4
        assert all(word.attention.startswith("data:image/png;base64,") for word in example.words)
        assert all(prob <= 1 for word in hidden for _, prob in word.guesses)
    assert "".join(word.text for word in shown[0].words).strip() == "a red apple"
    assert shown[0].words[shown[0].first_word].text.strip() in "red apple"


def test_attention_of_a_word_sums_to_one_over_the_patches(examples):
    task = ReconstructionTask.of_run(CONFIG)
    maps = word_attention(RUN.model, task.rows(examples), task, RUN.mesh)
    assert maps.shape == (4, 8, 4, 4)
    np.testing.assert_allclose(maps.sum(axis=(2, 3)), 1, rtol=1e-5)


def test_the_map_is_opaque_where_attention_is_largest():
    weights = np.array([[0.1, 0.2], [0.3, 0.4]], np.float32)
    opacity = pixels(attention_uri(weights))[..., 3]
    np.testing.assert_array_equal(opacity, [[0, 0], [72, 215]])


def test_an_encoder_without_a_decoder_shows_originals_and_attention(examples):
    for example in show_examples(trained_run(without_decoder()), examples, count=2):
        assert example.original
        assert example.fills == ()
        assert all(word.attention and not word.guesses for word in example.words)
