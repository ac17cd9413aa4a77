"""Guards the rates by layer: which parameter gets which, decay of weights included."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_classifier import CONFIG, classifier

from m3ae_tpu.config import FinetuneOptimizerConfig
from m3ae_tpu.finetuning.layer_decay import layer_factor, scale_by_layer
from m3ae_tpu.run.checkpoint_reader import named_arrays
from m3ae_tpu.train.optimizer import gradient_transformation, is_matrix

DECAY, LAYERS = 0.5, 3
BELOW, TOP = 0.5**4, 1.0
BY_BLOCK = [0.5**3, 0.5**2, 0.5]
TABLE = {
    "m3ae.cls_token": BELOW,
    "m3ae.image.embedding.kernel": BELOW,
    "m3ae.image.embedding.bias": BELOW,
    "m3ae.image.encoder_type": BELOW,
    "m3ae.encoder.blocks.attention_norm.scale": BY_BLOCK,
    "m3ae.encoder.blocks.attention_norm.bias": BY_BLOCK,
    "m3ae.encoder.blocks.attention_in.kernel": BY_BLOCK,
    "m3ae.encoder.blocks.attention_in.bias": BY_BLOCK,
    "m3ae.encoder.blocks.attention_out.kernel": BY_BLOCK,
    "m3ae.encoder.blocks.attention_out.bias": BY_BLOCK,
    "m3ae.encoder.blocks.mlp_norm.scale": BY_BLOCK,
    "m3ae.encoder.blocks.mlp_norm.bias": BY_BLOCK,
    "m3ae.encoder.blocks.mlp_in.kernel": BY_BLOCK,
    "m3ae.encoder.blocks.mlp_in.bias": BY_BLOCK,
    "m3ae.encoder.blocks.mlp_out.kernel": BY_BLOCK,
    "m3ae.encoder.blocks.mlp_out.bias": BY_BLOCK,
    "m3ae.encoder.norm.scale": TOP,
    "m3ae.encoder.norm.bias": TOP,
    "norm.scale": TOP,
    "norm.bias": TOP,
    "class_head.kernel": TOP,
    "class_head.bias": TOP,
}


def test_the_table_has_every_parameter():
    assert named_arrays(classifier()).keys() == TABLE.keys()


@pytest.mark.parametrize("name", TABLE)
def test_each_parameter_has_the_factor_of_its_layer(name):
    leaf = named_arrays(classifier())[name]
    factor = layer_factor(name, leaf.shape, DECAY, LAYERS)
    assert np.broadcast_shapes(factor.shape, leaf.shape) == leaf.shape
    np.testing.assert_allclose(factor.ravel(), np.atleast_1d(TABLE[name]), rtol=1e-6)


@pytest.mark.parametrize("name", ["m3ae.image.positions", "m3ae.cls_position"])
def test_stored_position_codes_count_as_embeddings(name):
    assert layer_factor(name, (4, 16), DECAY, LAYERS).item() == BELOW


def test_rates_and_weight_decay_are_scaled_alike():
    # The first update of Adam moves each parameter by the rate, whatever its gradient.
    model: Any = classifier()
    config = FinetuneOptimizerConfig(weight_decay=0.5)
    plain = gradient_transformation(config, optax.constant_schedule(0.1), is_matrix)
    by_layer = optax.chain(plain, scale_by_layer(DECAY, LAYERS))
    gradients = jax.tree.map(jnp.ones_like, model)
    with jax.numpy_dtype_promotion("standard"):
        expected, _ = plain.update(gradients, plain.init(model), model)
        updates, _ = by_layer.update(gradients, by_layer.init(model), model)
    for name, update in named_arrays(updates).items():
        factor = np.asarray(TABLE[name], np.float32)
        factor = factor.reshape(-1, *[1] * (update.ndim - 1)) if factor.ndim else factor
        np.testing.assert_allclose(update, named_arrays(expected)[name] * factor, rtol=1e-6)
    assert CONFIG.model.encoder.num_layers == LAYERS
