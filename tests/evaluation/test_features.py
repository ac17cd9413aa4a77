"""Guards frozen features: the same bits whatever the batch, and padding without influence."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from small_run import trained_run

from m3ae_tpu.batch import Rows
from m3ae_tpu.evaluation.features import (
    IMAGE_POOLINGS,
    PAIR_POOLINGS,
    TEXT_POOLINGS,
    pool_images,
    pool_pairs,
    pool_texts,
    thumbnails,
)
from m3ae_tpu.model.inputs import make_inputs
from m3ae_tpu.parallel.row_map import RowMap

RUN = trained_run()
NORMALIZER = RUN.task.normalizer
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 24, 24, 3), np.uint8)
pool_all_images = RowMap(functools.partial(pool_images, normalizer=NORMALIZER), RUN.mesh)
pool_all_pairs = RowMap(functools.partial(pool_pairs, normalizer=NORMALIZER), RUN.mesh)
pool_all_texts = RowMap(functools.partial(pool_texts, normalizer=NORMALIZER), RUN.mesh)


def pairs(padding=0, images=IMAGES):
    text_ids = np.random.default_rng(1).integers(1, 20, (5, 6)).astype(np.int32)
    is_valid = np.arange(6)[None, :] < np.array([6, 3, 1, 0, 4])[:, None]
    text_ids = np.where(is_valid, text_ids, padding).astype(np.int32)
    return Rows(images=images, text_ids=text_ids, is_valid=is_valid)


FEATURES_OF_TEXTS = pool_all_texts(RUN.model, pairs())


def test_every_pooling_has_a_row_for_each_example():
    features = pool_all_images(RUN.model, IMAGES)
    assert features.keys() == IMAGE_POOLINGS.keys()
    assert {len(values) for values in features.values()} == {5}
    assert features["cls"].shape == (5, 16)
    assert {values.dtype for values in features.values()} == {np.dtype(np.float32)}


def test_features_are_the_same_bits_every_time_and_in_any_company():
    once, again = (pool_all_images(RUN.model, IMAGES) for _ in range(2))
    alone = pool_all_images(RUN.model, IMAGES[3:])
    for name in once:
        np.testing.assert_array_equal(once[name], again[name])
        np.testing.assert_allclose(once[name][3:], alone[name], atol=2e-6)


def test_poolings_are_what_their_names_say():
    features = pool_all_images(RUN.model, IMAGES)
    inputs = make_inputs(Rows(images=jnp.asarray(IMAGES)), NORMALIZER, jnp.float32)
    tokens = np.asarray(
        jax.jit(lambda model, inputs: model.encode(inputs).tokens)(RUN.model, inputs)
    )
    np.testing.assert_allclose(features["cls"], tokens[:, 0], atol=2e-6)
    np.testing.assert_allclose(features["mean"], tokens[:, 1:].mean(axis=1), atol=2e-6)
    patches = tokens[:, 1:]
    assert features["cls_mean_max"].shape[1] == 4 * 16
    np.testing.assert_allclose(features["cls_mean_max"][:, 48:], patches.max(axis=1), atol=2e-6)
    assert patches.shape[1] == 3 * 3  # The middle row and column are in two quarters each.
    quarters = [[0, 1, 3, 4], [1, 2, 4, 5], [3, 4, 6, 7], [4, 5, 7, 8]]
    expected = np.concatenate([tokens[:, 0], *(patches[:, each].max(1) for each in quarters)], 1)
    np.testing.assert_allclose(features["cls_quarters"], expected, atol=2e-6)


def test_padding_of_captions_changes_no_feature_of_pairs():
    clean, noisy = (pool_all_pairs(RUN.model, pairs(padding)) for padding in (0, 7))
    assert clean.keys() == PAIR_POOLINGS.keys()
    for name in clean:
        np.testing.assert_array_equal(clean[name], noisy[name])
        assert np.isfinite(clean[name]).all()


def test_captions_change_the_features_of_pairs():
    rows = pairs()
    others = rows._replace(
        text_ids=np.roll(rows.text_ids, 1, axis=0), is_valid=np.roll(rows.is_valid, 1, axis=0)
    )
    one, other = (pool_all_pairs(RUN.model, each)["cls"] for each in (rows, others))
    assert not np.allclose(one, other)


def test_the_thumbnail_of_a_plain_image_is_its_colour():
    image = jnp.asarray(np.full((1, 48, 48, 3), (255, 0, 51), np.uint8))
    pixels = jax.jit(thumbnails)(image)
    assert pixels.shape == (1, 32 * 32 * 3)
    np.testing.assert_allclose(pixels.reshape(-1, 3), np.tile([[1, 0, 0.2]], (1024, 1)), atol=1e-6)


def test_captions_alone_have_features_without_their_padding_or_image():
    assert FEATURES_OF_TEXTS.keys() == TEXT_POOLINGS.keys()
    noisy = pool_all_texts(RUN.model, pairs(7, IMAGES[::-1].copy()))
    for name, features in FEATURES_OF_TEXTS.items():
        np.testing.assert_array_equal(features, noisy[name])
        assert np.isfinite(features).all()


def mean_of_words(tokens, is_valid):
    """Returns the mean of the words of [class, *words] in each row; 0 without any."""
    rows = zip(np.asarray(tokens)[:, 1:], is_valid, strict=True)
    return np.stack([words[each].mean(0) if each.any() else np.zeros(16) for words, each in rows])


def test_every_layer_goes_from_the_embedded_words_to_those_of_the_last_block():
    rows = pairs()
    inputs = make_inputs(rows._replace(images=None), NORMALIZER, jnp.float32)

    @jax.jit
    def first_and_last(model, inputs):
        return model.embed(inputs)[0], model.encode(inputs).tokens

    first, last = (
        mean_of_words(tokens, rows.is_valid) for tokens in first_and_last(RUN.model, inputs)
    )
    of_texts = FEATURES_OF_TEXTS["every_layer"]
    assert of_texts.shape == (5, 3 * 16)
    np.testing.assert_allclose(of_texts[:, :16], first, atol=2e-6)
    np.testing.assert_allclose(of_texts[:, -16:], last, atol=2e-6)
    of_pairs = pool_all_pairs(RUN.model, rows)["every_layer"]
    assert of_pairs.shape == (5, 5 * 16)
    np.testing.assert_allclose(of_pairs[:, :16], first, atol=2e-6)
