"""Guards mixup, cutmix and random erasing: their distribution, and that targets follow images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m3ae_tpu.config import AugmentationConfig
from m3ae_tpu.finetuning.erasing import erase
from m3ae_tpu.finetuning.mixing import draw_mixture, mixed_targets, partners

MIXUP = AugmentationConfig(mixup_alpha=0.8, cutmix_alpha=0.0)
CUTMIX = AugmentationConfig(mixup_alpha=0.0, cutmix_alpha=1.0)
BOTH = AugmentationConfig()
KEYS = jax.random.split(jax.random.key(3), 400)


def mixtures(config, shape=(8, 12)):
    return np.asarray(jax.vmap(lambda key: draw_mixture(key, shape, config).weight)(KEYS))


def test_mixup_blends_whole_images_by_a_share_from_beta():
    weights = mixtures(MIXUP)
    shares = weights[:, 0, 0]
    assert (weights == shares[:, None, None]).all()
    # Variance of Beta(a, a): 1 / (4 (2a + 1)).
    assert abs(shares.mean() - 0.5) < 0.05
    assert abs(shares.var() - 1 / (4 * 2.6)) < 0.02


def test_cutmix_takes_one_box_of_the_partner():
    weights = mixtures(CUTMIX)
    assert set(np.unique(weights)) == {0.0, 1.0}
    for weight in weights:
        rows, columns = (weight == 0).any(axis=1), (weight == 0).any(axis=0)
        assert ((weight == 0) == rows[:, None] & columns[None]).all()
        assert (np.diff(np.flatnonzero(rows)) == 1).all()
        assert (np.diff(np.flatnonzero(columns)) == 1).all()
    cut = 1 - weights.mean(axis=(1, 2))
    # Half the area would be cut, if no box stood out of the image.
    assert 0.25 < cut.mean() < 0.45
    assert cut.max() > 0.8


def test_with_both_on_each_has_half_of_the_batches():
    is_cut = np.array([set(np.unique(weight)) <= {0.0, 1.0} for weight in mixtures(BOTH)])
    assert 0.4 < is_cut.mean() < 0.6


@pytest.mark.parametrize("config", [MIXUP, CUTMIX])
def test_targets_have_the_shares_of_the_images(config):
    # Images of one brightness each: their mean tells the share of each.
    labels = jnp.arange(4)
    images = jnp.broadcast_to(10.0 ** labels[:, None, None, None].astype(jnp.float32), (4, 8, 8, 3))
    mixture = draw_mixture(KEYS[5], (8, 8), config)
    mixed = mixture(images).mean(axis=(1, 2, 3))
    targets = mixed_targets(labels, 4, mixture.share, 0.0)
    np.testing.assert_allclose(targets @ (10.0 ** np.arange(4, dtype=np.float32)), mixed, rtol=1e-5)
    np.testing.assert_allclose(targets.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(np.diagonal(targets), mixture.share, rtol=1e-6)


def test_smoothing_gives_every_class_its_share():
    targets = mixed_targets(jnp.array([0, 1]), 5, jnp.float32(1), 0.1)
    np.testing.assert_allclose(targets[0], [0.92, 0.02, 0.02, 0.02, 0.02], rtol=1e-6)


@pytest.mark.parametrize("num_micro_batches", [1, 2, 4])
def test_a_row_has_the_same_partner_in_any_number_of_micro_batches(num_micro_batches):
    rows = jnp.arange(16)
    micro = rows.reshape(-1, num_micro_batches)  # As the step splits them.
    own = np.stack([partners(micro[:, index]) for index in range(num_micro_batches)], axis=1)
    np.testing.assert_array_equal(own.ravel(), partners(rows))


def test_erasing_fills_one_box_of_a_share_of_the_images_with_noise():
    images = jnp.zeros((400, 16, 16, 3))
    erased = np.asarray(erase(images, KEYS, 0.25))
    boxes = (erased != 0).all(axis=3)
    assert ((erased != 0).any(axis=3) == boxes).all()
    is_done = boxes.any(axis=(1, 2))
    assert 0.18 < is_done.mean() < 0.32
    areas = boxes[is_done].mean(axis=(1, 2))
    assert areas.min() >= 0.01
    assert areas.max() <= 0.4
    for box in boxes[is_done]:
        assert (box == box.any(axis=1)[:, None] & box.any(axis=0)[None]).all()
    assert abs(erased[boxes].mean()) < 0.05
    assert abs(erased[boxes].std() - 1) < 0.05


def test_an_image_is_erased_alike_in_any_batch():
    images = jax.random.normal(KEYS[0], (6, 16, 16, 3))
    whole = erase(images, KEYS[:6], 1.0)
    np.testing.assert_array_equal(whole[2:4], erase(images[2:4], KEYS[2:4], 1.0))
    np.testing.assert_array_equal(erase(images, KEYS[:6], 0.0), images)
