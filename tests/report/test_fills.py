"""Guards images that are filled in: one program gives what the model predicts at any mask ratio."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_run import CONFIG, trained_run, with_source

from m3ae_tpu.batch import Rows
from m3ae_tpu.model.masking import num_visible
from m3ae_tpu.pretrained.task import ReconstructionTask
from m3ae_tpu.report.fills import predict_patches


@pytest.mark.parametrize("config", [CONFIG, with_source("image")], ids=["paired", "image"])
def test_one_program_predicts_as_the_model_does_at_every_ratio(config):
    run, random = trained_run(config), np.random.default_rng(3)
    task = ReconstructionTask.of_run(config)
    rows = Rows(images=random.integers(0, 256, (8, 32, 32, 3), np.uint8))
    if task.has_texts:
        is_valid = np.arange(8) < np.array([8, 3, 0, 1, 5, 2, 7, 4])[:, None]
        ids = np.where(is_valid, random.integers(5, 4_000, (8, 8)), 0)
        rows = rows._replace(text_ids=ids.astype(np.int32), is_valid=is_valid)
    inputs = task.make_inputs(jax.tree.map(jnp.asarray, rows))
    key, places = jax.random.key(0), jnp.arange(8)
    predict = eqx.filter_jit(functools.partial(predict_patches, run.model))
    for ratio in (0.5, 0.75, 0.9):
        masking = dataclasses.replace(task.masking, image_mask_ratio=ratio)
        masks = dataclasses.replace(task, masking=masking).draw_masks(
            run.model, inputs, key, places
        )
        assert masks.image is not None
        count = num_visible(16, ratio)
        order = jnp.concatenate(masks.image, axis=1)
        patches = predict(inputs, order, jnp.int32(count), masks.text)[:, count:]
        wanted = eqx.filter_jit(run.model.reconstruct)(inputs, masks).patches
        assert wanted is not None
        np.testing.assert_allclose(patches, wanted, rtol=2e-4, atol=2e-4)
