"""Guards the classifier: its heads, drop path, and a loss that no batching changes."""

import dataclasses
import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_classifier import CLASSES, CONFIG, NOTHING, batch, classifier, images

from m3ae_tpu.batch import Rows
from m3ae_tpu.config import HeadConfig
from m3ae_tpu.finetuning.averaging import average_of, average_weights
from m3ae_tpu.finetuning.objective import classification_loss, finetuning, init_classifier
from m3ae_tpu.model.inputs import Normalizer, make_inputs
from m3ae_tpu.model.masking import Masks, Selection
from m3ae_tpu.model.transformer import draw_branch_scales
from m3ae_tpu.parallel.mesh import by_example, make_mesh
from m3ae_tpu.parallel.operations import Operations
from m3ae_tpu.train.step import init_state, steps_key, train_step

NORMALIZER = Normalizer.of_data(CONFIG.data)
KEY = jax.random.key(5)
INPUTS = make_inputs(Rows(images=jnp.asarray(images())), NORMALIZER, jnp.float32)


@pytest.mark.parametrize("pooling", ["cls", "image_mean", "image_avgmax", "cls_image_mean_max"])
def test_a_head_sees_its_pooling_and_what_its_twin_in_timm_sees(pooling):
    model = classifier(pooling)
    tokens = np.asarray(model.m3ae.encode(INPUTS, final_norm=pooling == "cls").tokens, np.float64)

    def normed(pooled):
        assert model.norm is not None
        pooled = pooled - pooled.mean(axis=1, keepdims=True)
        pooled /= np.sqrt((pooled**2).mean(axis=1, keepdims=True) + 1e-6)
        return pooled * np.asarray(model.norm.scale) + np.asarray(model.norm.bias)

    cls, mean, largest = tokens[:, 0], tokens[:, 1:].mean(axis=1), tokens[:, 1:].max(axis=1)
    if model.norm is None:
        pooled = cls
    elif pooling == "cls_image_mean_max":
        pooled = np.concatenate([normed(cls), normed(mean), normed(largest)], axis=1)
    else:  # Global pooling: the patches before the final norm, then a norm of their own.
        pooled = normed(mean if pooling == "image_mean" else 0.5 * (largest + mean))
    expected = pooled @ np.asarray(model.class_head.kernel) + np.asarray(model.class_head.bias)
    np.testing.assert_allclose(model(INPUTS), expected, atol=2e-5)


def test_initial_logits_are_near_zero_and_the_encoder_is_that_of_pre_training():
    model = init_classifier(CONFIG)
    assert model.class_head.kernel.shape == (16, len(CLASSES))
    assert np.abs(model(INPUTS)).max() < 1e-3
    assert model.m3ae.decoder is None
    assert init_classifier(dataclasses.replace(CONFIG, head=HeadConfig(pooling="cls"))).norm is None


def test_drop_path_grows_in_a_line_and_keeps_the_mean():
    keys = jax.random.split(KEY, 4_000)
    scales = np.asarray(draw_branch_scales(keys, 3, 0.4))
    assert scales.shape == (3, 4_000, 2)
    np.testing.assert_allclose((scales == 0).mean(axis=(1, 2)), [0, 0.2, 0.4], atol=0.02)
    np.testing.assert_allclose(scales.mean(axis=(1, 2)), 1, atol=0.03)
    # Attention and MLP are dropped apart from each other.
    assert 0.1 < ((scales[2] == 0).all(axis=1)).mean() < 0.22


def test_a_dropped_branch_adds_nothing_and_scales_of_one_change_nothing():
    model = classifier()
    ones = jnp.ones((3, len(images()), 2))
    np.testing.assert_array_equal(model(INPUTS, branch_scales=ones), model(INPUTS))
    first = ones.at[:, 0].set(0.0)
    x, _ = model.m3ae.embed(INPUTS)
    encoded = model.m3ae.encoder(x, None, final_norm=False, branch_scales=first)
    np.testing.assert_array_equal(encoded[0], x[0])
    np.testing.assert_array_equal(model(INPUTS, branch_scales=first)[1:], model(INPUTS)[1:])


def test_masked_patches_do_not_count():
    model = classifier()
    visible = jnp.array([[1, 2]] * len(images()), jnp.int32)
    hidden = jnp.array([[0, 3]] * len(images()), jnp.int32)
    masks = Masks(image=Selection(visible, hidden))
    assert INPUTS.images is not None
    noise = INPUTS._replace(images=INPUTS.images.at[:, :8, :8].set(9.0).at[:, 8:, 8:].set(-9.0))
    np.testing.assert_array_equal(model(noise, masks), model(INPUTS, masks))
    assert np.abs(model(noise) - model(INPUTS)).max() > 1e-3


def test_training_sees_the_share_of_patches_that_the_config_leaves():
    config = dataclasses.replace(CONFIG, augmentation=NOTHING, drop_path=0.0)
    model, rows = classifier(), {"image": jnp.arange(8)}
    whole = loss_of(config)(model, batch(), rows, KEY)[0]
    masked = dataclasses.replace(config, image_mask_ratio=0.75)
    values = [
        float(loss_of(masked)(model, batch(), rows, jax.random.fold_in(KEY, step))[0])
        for step in range(2)
    ]
    assert len({float(whole), *values}) == 3
    lines = dict(finetuning(masked).describe(model, batch()))
    assert lines["images"] == "16 px, 4 patches, 1 of them seen in training"


@functools.cache
def loss_of(config=CONFIG):
    loss = functools.partial(classification_loss, config=config, normalizer=NORMALIZER)
    return jax.jit(loss)


def test_the_loss_is_the_mean_cross_entropy_of_smoothed_targets():
    config = dataclasses.replace(CONFIG, augmentation=NOTHING, drop_path=0.0)
    model, rows = classifier(), {"image": jnp.arange(8)}
    loss, metrics = loss_of(config)(model, batch(), rows, KEY)
    logits = np.asarray(model(INPUTS), np.float64)
    labels = batch()["image"].labels
    log_probs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    targets = np.eye(3)[labels] * 0.9 + 0.1 / 3
    np.testing.assert_allclose(loss, -(targets * log_probs).sum(axis=1).mean(), rtol=1e-5)
    assert metrics.means["accuracy"] == pytest.approx((logits.argmax(axis=1) == labels).mean())


def test_every_step_and_every_row_has_its_own_draws():
    model, rows = classifier(), {"image": jnp.arange(8)}
    config = dataclasses.replace(CONFIG, drop_path=0.5)
    values = {
        float(loss_of(config)(model, batch(), rows, jax.random.fold_in(KEY, step))[0])
        for step in range(3)
    }
    assert len(values) == 3
    moved = loss_of(config)(model, batch(), {"image": jnp.arange(8) + 8}, KEY)[0]
    assert float(moved) != float(loss_of(config)(model, batch(), rows, KEY)[0])


def test_devices_and_micro_batches_change_no_draw():
    config = dataclasses.replace(CONFIG, drop_path=0.5, image_mask_ratio=0.5)
    loss = functools.partial(classification_loss, config=config, normalizer=NORMALIZER)
    optimizer = optax.sgd(1.0)

    def updated(operations, num_micro_batches, place=lambda rows: rows):
        model = classifier("image_mean", operations)
        state_of = functools.partial(
            train_step,
            loss=loss,
            optimizer=optimizer,
            key=steps_key(0),
            accumulation_steps=num_micro_batches,
        )
        state, metrics = jax.jit(state_of)(init_state(model, optimizer), place(batch(16)))
        return state.model, metrics.means["loss"]

    mesh = make_mesh()
    expected, loss_value = updated(Operations(), 1)
    placed = functools.partial(jax.device_put, device=by_example(mesh))
    for model, value in (updated(Operations(), 4), updated(Operations(mesh), 1, placed)):
        np.testing.assert_allclose(value, loss_value, rtol=1e-5)
        for ours, theirs in zip(jax.tree.leaves(model), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-5)


def test_the_average_follows_the_weights_and_leaves_the_updates():
    average = average_weights(0.5)
    state: Any = average.init({"w": jnp.zeros(1)})
    expected = 0.0
    weights: Any = {"w": jnp.zeros(1)}
    for step in range(20):
        updates, state = average.update({"w": jnp.ones(1)}, state, weights)
        weights = optax.apply_updates(weights, updates)
        kept = min(0.5, (1 + step) / (10 + step))
        expected = kept * expected + (1 - kept) * (step + 1)
        np.testing.assert_allclose(state.average["w"], expected, rtol=1e-5)
    assert weights["w"].item() == 20
    assert average_of((None, state)) is state.average
    assert average_of(optax.adam(1e-3).init(weights)) is None
    assert eqx.tree_equal(updates, {"w": jnp.ones(1)})
