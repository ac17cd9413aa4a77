"""Guards what users of the network rely on: padding, missing modalities, features, gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m3ae_tpu.config import (
    MaskingConfig,
    ModelConfig,
    PretrainConfig,
    SourceConfig,
    TransformerConfig,
)
from m3ae_tpu.configs import debug
from m3ae_tpu.model.m3ae import M3AE
from m3ae_tpu.model.transformer import Block
from m3ae_tpu.train.reconstruction import reconstruction_loss

CONFIG = dataclasses.replace(
    debug.CONFIG,
    model=ModelConfig(
        patch_size=8,
        vocab_size=50,
        encoder=TransformerConfig(num_layers=3, width=32, num_heads=4),
        decoder=TransformerConfig(num_layers=1, width=16, num_heads=2),
        compute_dtype="float32",
    ),
)
LENGTHS = np.array([10, 6, 1, 0])
VALID = jnp.asarray(np.arange(10)[None] < LENGTHS[:, None])

encode = jax.jit(M3AE.encode)
encode_layers = jax.jit(M3AE.encode_layers)
gradient = jax.jit(jax.value_and_grad(reconstruction_loss, has_aux=True), static_argnames="config")


@pytest.fixture(scope="module")
def model():
    return M3AE(CONFIG.model, key=jax.random.key(0))


def images(height=32, width=32):
    return jax.random.normal(jax.random.key(1), (4, height, width, 3))


def text(padding=0):
    ids = jax.random.randint(jax.random.key(2), (4, 10), 1, 50)
    return jnp.where(VALID, ids, padding)


def batch(padding=0):
    pixels = jax.random.randint(jax.random.key(4), (4, 32, 32, 3), 0, 256).astype(jnp.uint8)
    return {"paired": {"image": pixels, "text": text(padding), "text_valid": VALID}}


def loss_and_gradients(model, examples, config=CONFIG):
    rows = {kind: jnp.arange(4) for kind in examples}
    (loss, metrics), gradients = gradient(model, examples, rows, jax.random.key(5), config=config)
    return loss, metrics, gradients


def test_padding_changes_no_valid_token_and_no_pooled_feature(model):
    zeros, nines = (encode(model, images(), text(padding), VALID) for padding in (0, 9))
    is_valid = np.concatenate([np.ones((4, 17), bool), np.asarray(VALID)], axis=1)
    np.testing.assert_array_equal(zeros.tokens[is_valid], nines.tokens[is_valid])
    for name in ("cls", "image_mean", "text_mean"):
        np.testing.assert_array_equal(getattr(zeros, name), getattr(nines, name))


def test_padding_changes_no_loss_and_no_gradient(model):
    for config in (
        CONFIG,
        dataclasses.replace(CONFIG, masking=MaskingConfig(text_positions="all")),
    ):
        zeros, nines = (loss_and_gradients(model, batch(padding), config) for padding in (0, 9))
        assert zeros[0] == nines[0]
        for left, right in zip(jax.tree.leaves(zeros[2]), jax.tree.leaves(nines[2]), strict=True):
            np.testing.assert_array_equal(left, right)


def test_rows_without_text_have_a_finite_loss_and_no_text_gradient(model):
    examples = batch()
    examples["paired"]["text_valid"] = jnp.zeros_like(VALID)
    loss, metrics, gradients = loss_and_gradients(model, examples)
    assert np.isfinite(loss)
    assert metrics["text_loss"] == 0
    assert metrics["hidden_words"] == 0
    for part in (gradients.text_embedding, gradients.text_head.kernel, gradients.text_head.bias):
        np.testing.assert_array_equal(part, 0)


@pytest.mark.parametrize(
    ("kind", "names", "unused"),
    [
        (
            "image",
            {"image": "image"},
            ["text_embedding", "text_head", "text_mask_token", "encoder_text_type"],
        ),
        (
            "text",
            {"text": "text", "text_valid": "text_valid"},
            ["image_embedding", "image_head", "image_mask_token"],
        ),
    ],
)
def test_one_modality_alone_trains_and_leaves_the_others_parameters_alone(
    model, kind, names, unused
):
    examples = {kind: {name: batch()["paired"][name] for name in names}}
    loss, metrics, gradients = loss_and_gradients(model, examples)
    assert np.isfinite(loss)
    assert loss > 0
    assert f"{kind}_loss" in metrics
    for name in unused:
        for leaf in jax.tree.leaves(getattr(gradients, name)):
            np.testing.assert_array_equal(leaf, 0)
    assert np.abs(gradients.encoder.blocks.mlp_in.kernel).max() > 0


def test_kinds_in_one_batch_add_up(model):
    pairs, alone = batch(), {"image": {"image": batch()["paired"]["image"]}}
    both, metrics, _ = loss_and_gradients(model, pairs | alone)
    one, other = loss_and_gradients(model, pairs)[0], loss_and_gradients(model, alone)[0]
    np.testing.assert_allclose(both, one + other, rtol=1e-6)
    assert {"image_loss", "text_loss", "unpaired_image_loss"} <= metrics.keys()


def test_features_are_the_same_bits_every_time_and_the_last_layer_of_all(model):
    features, layers = (
        encode(model, images(), text(), VALID),
        encode_layers(model, images(), text(), VALID),
    )
    np.testing.assert_array_equal(features.tokens, encode(model, images(), text(), VALID).tokens)
    assert layers.tokens.shape == (3, *features.tokens.shape)
    np.testing.assert_allclose(layers.tokens[-1], features.tokens, atol=1e-5)
    np.testing.assert_allclose(
        features.image_mean, features.tokens[:, 1:17].mean(axis=1), atol=1e-6
    )
    np.testing.assert_allclose(
        features.text_mean[1], features.tokens[1, 17:23].mean(axis=0), atol=1e-6
    )
    np.testing.assert_array_equal(features.text_mean[3], 0)


def test_text_alone_and_images_that_are_not_square_have_features(model):
    alone = encode(model, None, text(), VALID)
    assert alone.tokens.shape == (4, 11, 32)
    assert alone.image_mean is None
    assert encode(model, images(16, 48)).tokens.shape == (4, 1 + 2 * 6, 32)
    tall, wide = (np.asarray(encode(model, images(*size)).cls) for size in ((16, 64), (32, 32)))
    assert np.abs(tall - wide).max() > 1e-3


def test_what_cannot_be_encoded_is_refused(model):
    with pytest.raises(ValueError, match="Nothing to encode"):
        model.encode()
    with pytest.raises(ValueError, match="cannot be cut into patches of 8 x 8"):
        model.encode(images(30, 32))
    without_text = M3AE(dataclasses.replace(CONFIG.model, vocab_size=0), key=jax.random.key(0))
    with pytest.raises(ValueError, match="vocab_size = 0"):
        without_text.encode(None, text(), VALID)


def test_remat_and_unrolling_change_memory_and_not_results(model):
    loss, _, gradients = loss_and_gradients(model, batch())
    other = M3AE(dataclasses.replace(CONFIG.model, remat=True, unroll=3), key=jax.random.key(0))
    other_loss, _, other_gradients = loss_and_gradients(other, batch())
    np.testing.assert_allclose(loss, other_loss, rtol=1e-6)
    for left, right in zip(
        jax.tree.leaves(gradients), jax.tree.leaves(other_gradients), strict=True
    ):
        np.testing.assert_allclose(left, right, atol=2e-6)


def test_a_block_keeps_what_products_and_attention_give_and_nothing_else():
    width, tokens = 32, 500
    block = Block(
        TransformerConfig(num_layers=1, width=width, num_heads=2),
        key=jax.random.key(0),
        attention_fn=lambda qkv, valid, num_heads: qkv[:, :, 0],
    )
    x = jnp.ones((1, tokens, width), jnp.bfloat16)
    _, pull_back = jax.vjp(lambda block, x: block(x, None), block, x)
    kept = [leaf for leaf in jax.tree.leaves(pull_back) if leaf.size >= tokens]
    of_tokens = [
        leaf
        for leaf in kept
        if (leaf.ndim == 3 and tokens in leaf.shape) or leaf.shape[0] == tokens
    ]
    # The two inputs, attention's result, and the MLP's hidden channels.
    assert sum(leaf.size for leaf in of_tokens) == tokens * width * (1 + 1 + 1 + 4)
    assert {leaf.dtype for leaf in of_tokens} == {jnp.dtype(jnp.bfloat16)}


def test_bfloat16_computes_close_to_float32(model):
    half = M3AE(dataclasses.replace(CONFIG.model, compute_dtype="bfloat16"), key=jax.random.key(0))
    loss, _, gradients = loss_and_gradients(half, batch())
    assert loss.dtype == jnp.float32
    assert gradients.cls_token.dtype == jnp.float32
    np.testing.assert_allclose(loss, loss_and_gradients(model, batch())[0], rtol=2e-2)


def test_a_run_of_images_alone_has_no_text_parameters():
    config = PretrainConfig(
        model=ModelConfig(vocab_size=0),
        data=dataclasses.replace(PretrainConfig().data, sources=(SourceConfig(kind="image"),)),
    )
    shapes = jax.eval_shape(lambda: M3AE(config.model, key=jax.random.key(0)))
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
    assert names
    assert not [name for name in names if "text" in name]
