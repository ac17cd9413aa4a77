"""Guards frozen features: the same bits whatever the batch, and padding that counts for nothing."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m3ae_tpu.config import ModelConfig, TransformerConfig
from m3ae_tpu.evaluation.features import (
    IMAGE_POOLINGS,
    PAIR_POOLINGS,
    image_features,
    pair_features,
    raw_pixels,
)
from m3ae_tpu.model.m3ae import M3AE
from m3ae_tpu.model.patches import normalize_images

STATISTICS: dict[str, Any] = {"mean": (0.8, 0.8, 0.7), "std": (0.3, 0.3, 0.3)}
SMALL = TransformerConfig(num_layers=2, width=16, num_heads=2)
CONFIG = ModelConfig(
    patch_size=8, vocab_size=20, encoder=SMALL, decoder=SMALL, compute_dtype="float32"
)


@pytest.fixture(scope="module")
def model():
    # Filled by NumPy: drawing a model's own initial values takes a long time to compile.
    random = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: M3AE(CONFIG, key=jax.random.key(0)))
    return jax.tree.map(
        lambda leaf: jnp.asarray(random.normal(0, 0.2, leaf.shape), leaf.dtype), shapes
    )


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 24, 24, 3), np.uint8)


def words():
    text = np.random.default_rng(1).integers(1, 20, (5, 6)).astype(np.int32)
    valid = np.arange(6)[None, :] < np.array([6, 3, 1, 0, 4])[:, None]
    return np.where(valid, text, 0).astype(np.int32), valid


def test_every_pooling_has_a_row_for_each_example(model, images):
    features = image_features(model, images, **STATISTICS, batch_size=2)
    assert features.keys() == IMAGE_POOLINGS.keys()
    assert {len(values) for values in features.values()} == {5}
    assert features["cls"].shape == (5, 16)
    assert {values.dtype for values in features.values()} == {np.dtype(np.float32)}


def test_features_are_the_same_bits_every_time_and_in_any_company(model, images):
    once = image_features(model, images, **STATISTICS, batch_size=4)
    again = image_features(model, images, **STATISTICS, batch_size=4)
    alone = image_features(model, images[3:], **STATISTICS, batch_size=4)
    for name in once:
        np.testing.assert_array_equal(once[name], again[name])
        np.testing.assert_allclose(once[name][3:], alone[name], atol=2e-6)


def test_poolings_are_what_their_names_say(model, images):
    features = image_features(model, images, **STATISTICS)
    pixels = normalize_images(jnp.asarray(images), **STATISTICS, dtype=jnp.float32)
    tokens = np.asarray(jax.jit(lambda model, pixels: model.encode(pixels).tokens)(model, pixels))
    np.testing.assert_allclose(features["cls"], tokens[:, 0], atol=2e-6)
    np.testing.assert_allclose(features["mean"], tokens[:, 1:].mean(axis=1), atol=2e-6)
    np.testing.assert_allclose(features["mean_max"][:, 16:], tokens[:, 1:].max(axis=1), atol=2e-6)
    assert features["cls_mean_max"].shape[1] == 4 * 16


def test_padding_of_captions_changes_no_pair_feature(model, images):
    text, valid = words()
    clean = pair_features(model, images, text, valid, **STATISTICS)
    noisy = pair_features(
        model, images, np.where(valid, text, 7).astype(np.int32), valid, **STATISTICS
    )
    assert clean.keys() == PAIR_POOLINGS.keys()
    for name in clean:
        np.testing.assert_array_equal(clean[name], noisy[name])
        assert np.isfinite(clean[name]).all()


def test_captions_change_pair_features(model, images):
    text, valid = words()
    one = pair_features(model, images, text, valid, **STATISTICS)["cls"]
    other = pair_features(
        model, images, np.roll(text, 1, axis=0), np.roll(valid, 1, axis=0), **STATISTICS
    )["cls"]
    assert not np.allclose(one, other)


def test_raw_pixels_of_a_plain_picture_are_its_colour():
    image = np.full((1, 48, 48, 3), (255, 0, 51), np.uint8)
    pixels = raw_pixels(image)
    assert pixels.shape == (1, 32 * 32 * 3)
    np.testing.assert_allclose(pixels.reshape(-1, 3), np.tile([[1, 0, 0.2]], (1024, 1)), atol=1e-6)
