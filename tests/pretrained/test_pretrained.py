"""Guards the use of a trained model from Python: preprocessing and features."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from small_run import trained_run, with_source, without_decoder

from m3ae_tpu.data.crops import resize_and_crop_center
from m3ae_tpu.errors import UserError
from m3ae_tpu.model.inputs import Inputs

RUN = trained_run()
PIXELS = np.random.default_rng(0).integers(0, 256, (8, 40, 50, 3), np.uint8)
TEXTS = ["a red house", "", "two dogs on a beach by the sea", *"words"]


def as_png(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_images_of_every_form_are_prepared_alike(tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(as_png(PIXELS[0]))
    forms = [path, str(path), as_png(PIXELS[0]), Image.fromarray(PIXELS[0]), PIXELS[0]]
    images = RUN.rows(images=forms).images
    for image in images:
        np.testing.assert_array_equal(image, resize_and_crop_center(PIXELS[0], 32))
    together = RUN.rows(images=PIXELS).images
    np.testing.assert_array_equal(together, RUN.rows(images=list(PIXELS)).images)


def test_a_turned_photograph_is_prepared_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(PIXELS[0]).save(file, "PNG", exif=exif)
    images = RUN.rows(images=[file.getvalue(), np.ascontiguousarray(np.rot90(PIXELS[0], -1))])
    np.testing.assert_array_equal(images.images[0], images.images[1])


def test_features_are_those_of_the_model():
    features = RUN.encode(images=list(PIXELS), texts=TEXTS)
    rows = RUN.rows(images=list(PIXELS), texts=TEXTS)
    pixels = RUN.task.normalizer(jnp.asarray(rows.images), jnp.float32)
    expected = RUN.model.encode(
        Inputs(pixels, jnp.asarray(rows.text_ids), jnp.asarray(rows.is_valid))
    )
    for ours, theirs in zip(features, expected, strict=True):
        assert isinstance(ours, np.ndarray)
        np.testing.assert_allclose(ours, np.asarray(theirs), atol=1e-5)
    layers = RUN.encode_layers(images=list(PIXELS), texts=TEXTS)
    assert layers.cls.shape == (2, 8, 16)
    np.testing.assert_allclose(layers.cls[-1], features.cls, atol=1e-5)


@pytest.mark.parametrize("given", [{"images": list(PIXELS)}, {"texts": TEXTS}])
def test_features_of_one_modality_do_not_depend_on_other_rows(given):
    (name, examples) = next(iter(given.items()))
    together = RUN.encode(**given)
    for number, example in enumerate(examples):
        alone = RUN.encode(**{name: [example]})
        np.testing.assert_allclose(alone.cls[0], together.cls[number], atol=2e-7)
    assert (together.image_mean is None) == (name == "texts")
    assert (together.text_mean is None) == (name == "images")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "images and texts are both empty"),
        ({"images": list(PIXELS), "texts": ["one"]}, r"images are 8 and texts 1\."),
        ({"images": [b"no image"]}, r"images\[0\] is not an image that can be read"),
        ({"images": "cat.jpg"}, r"images = 'cat\.jpg' is one, not several\. Give a list: images="),
        ({"texts": "a cat"}, r"texts = 'a cat' is one, not several\. Give a list: texts="),
        ({"images": PIXELS[0]}, r"images\[0\] is an array uint8 \[50, 3\]\. Give"),
        ({"images": ["missing.jpg"]}, r"missing\.jpg cannot be read \(No such file"),
        ({"images": [PIXELS[0] / 255]}, r"images\[0\] is an array float64 \[40, 50, 3\]\. Give"),
    ],
)
def test_wrong_input_is_refused(given, message):
    with pytest.raises(UserError, match=message):
        RUN.encode(**given)


def test_a_modality_that_was_not_learned_is_refused():
    with pytest.raises(UserError, match="the model has learned images only"):
        trained_run(with_source("image")).encode(texts=["a"])
    with pytest.raises(UserError, match="the model has learned texts only"):
        trained_run(with_source("text")).encode(images=[PIXELS[0]])


def test_examples_are_filled_in_where_they_were_hidden():
    images = RUN.rows(images=list(PIXELS)).images
    shown = RUN.reconstruct(images=list(PIXELS), texts=TEXTS, seed=3)
    assert shown.masked_images is not None
    assert shown.images is not None
    is_hidden = shown.masked_images[..., 3] == 0
    np.testing.assert_array_equal(is_hidden.mean(axis=(1, 2)), 0.75)
    # Normalised and back, a byte may be rounded otherwise.
    difference = np.abs(shown.images.astype(int) - images)
    assert difference[~is_hidden].max() <= 1
    assert difference[is_hidden].mean() > 10
    assert shown.masked_texts is not None
    assert shown.texts is not None
    assert (shown.masked_texts[1], shown.texts[1]) == ("", "")
    assert shown.masked_texts[0].count("_") in (2, 3)
    assert [len(text) > 0 for text in shown.texts] == [bool(text) for text in TEXTS]


def test_what_is_hidden_follows_from_seed_and_ratios():
    def masks(**options):
        masked = RUN.reconstruct(images=list(PIXELS), **options).masked_images
        assert masked is not None
        return masked[..., 3] == 0

    np.testing.assert_array_equal(masks(seed=1), masks(seed=1))
    assert (masks(seed=1) != masks(seed=2)).any()
    assert masks(image_mask_ratio=0.5).mean() == 0.5
    assert masks(image_mask_ratio=0.0).mean() == 0
    whole = RUN.reconstruct(texts=["a red house"], text_mask_ratio=0.0)
    assert (whole.masked_images, whole.images) == (None, None)
    assert whole.masked_texts == whole.texts == ["a red house"]


def test_a_model_or_ratio_that_fills_in_nothing_is_refused():
    with pytest.raises(UserError, match=r"is an encoder without a decoder"):
        trained_run(without_decoder()).reconstruct(texts=["a"])
    with pytest.raises(UserError, match=r"image_mask_ratio = 75\.0 is not in \[0, 1\]\. Did you"):
        RUN.reconstruct(images=list(PIXELS), image_mask_ratio=75.0)
