"""Guards what users of the network rely on: padding, missing modalities, features, gradients."""

import dataclasses
import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m3ae_tpu.batch import Rows
from m3ae_tpu.config import MaskingConfig, ModelConfig, TransformerConfig
from m3ae_tpu.configs import debug
from m3ae_tpu.errors import UserError
from m3ae_tpu.kernels.attention import packed
from m3ae_tpu.model.inputs import Inputs, Normalizer, make_inputs
from m3ae_tpu.model.m3ae import M3AE
from m3ae_tpu.model.masking import Masks, Selection, draw_masks
from m3ae_tpu.model.modality import resized_positions
from m3ae_tpu.model.positions import image_positions, text_positions
from m3ae_tpu.model.transformer import Block
from m3ae_tpu.parallel.operations import Operations
from m3ae_tpu.train.pretraining import pretraining

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
IS_VALID = jnp.asarray(np.arange(10)[None] < LENGTHS[:, None])

encode = jax.jit(M3AE.encode)
encode_layers = jax.jit(M3AE.encode_layers)


@functools.cache
def gradient(config):
    return jax.jit(jax.value_and_grad(pretraining(config).loss, has_aux=True))


def make_model(**changes):
    config = dataclasses.replace(CONFIG.model, **changes)
    return jax.jit(lambda: M3AE(config, key=jax.random.key(0)))()


@pytest.fixture(scope="module")
def model():
    return make_model()


def images(height=32, width=32):
    return jax.random.normal(jax.random.key(1), (4, height, width, 3))


def text(padding=0):
    ids = jax.random.randint(jax.random.key(2), (4, 10), 1, 50)
    return jnp.where(IS_VALID, ids, padding)


def pairs(padding=0):
    return Inputs(images(), text(padding), IS_VALID)


def batch(padding=0):
    pixels = jax.random.randint(jax.random.key(4), (4, 32, 32, 3), 0, 256).astype(jnp.uint8)
    return {"paired": Rows(pixels, None, text(padding), IS_VALID)}


def loss_and_gradients(model, examples, config=CONFIG):
    rows = {kind: jnp.arange(4) for kind in examples}
    (loss, metrics), gradients = gradient(config)(model, examples, rows, jax.random.key(5))
    return loss, metrics.means | metrics.counts, gradients


def test_padding_changes_no_valid_token_and_no_pooled_feature(model):
    zeros, nines = (encode(model, pairs(padding)) for padding in (0, 9))
    is_valid = np.concatenate([np.ones((4, 17), bool), np.asarray(IS_VALID)], axis=1)
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
    examples = {"paired": batch()["paired"]._replace(is_valid=jnp.zeros_like(IS_VALID))}
    loss, metrics, gradients = loss_and_gradients(model, examples)
    assert np.isfinite(loss)
    assert metrics["text_loss"] == 0
    assert metrics["hidden_words"] == 0
    for leaf in jax.tree.leaves((gradients.text.embedding, gradients.text.head)):
        np.testing.assert_array_equal(leaf, 0)


@pytest.mark.parametrize(("kind", "other"), [("image", "text"), ("text", "image")])
def test_one_modality_alone_trains_and_leaves_the_others_parameters_alone(model, kind, other):
    both = batch()["paired"]
    alone = Rows(images=both.images) if kind == "image" else both._replace(images=None)
    loss, metrics, gradients = loss_and_gradients(model, {kind: alone})
    assert np.isfinite(loss)
    assert loss > 0
    assert f"{kind}_loss" in metrics
    for leaf in jax.tree.leaves(getattr(gradients, other)):
        np.testing.assert_array_equal(leaf, 0)
    assert np.abs(gradients.encoder.blocks.mlp_in.kernel).max() > 0


def test_kinds_in_one_batch_add_up(model):
    together, alone = batch(), {"image": Rows(images=batch()["paired"].images)}
    both, metrics, _ = loss_and_gradients(model, together | alone)
    one, other = loss_and_gradients(model, together)[0], loss_and_gradients(model, alone)[0]
    np.testing.assert_allclose(both, one + other, rtol=1e-6)
    assert {"image_loss", "text_loss", "unpaired_image_loss"} <= metrics.keys()


def test_features_are_the_same_bits_every_time_and_the_last_layer_of_all(model):
    features, layers = encode(model, pairs()), encode_layers(model, pairs())
    np.testing.assert_array_equal(features.tokens, encode(model, pairs()).tokens)
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
    alone = encode(model, Inputs(None, text(), IS_VALID))
    assert alone.tokens.shape == (4, 11, 32)
    assert alone.image_mean is None
    assert encode(model, Inputs(images(16, 48))).tokens.shape == (4, 1 + 2 * 6, 32)
    tall, wide = (
        np.asarray(encode(model, Inputs(images(*size))).cls) for size in ((16, 64), (32, 32))
    )
    assert np.abs(tall - wide).max() > 1e-3


def test_what_cannot_be_encoded_is_refused(model):
    with pytest.raises(ValueError, match="Nothing to encode"):
        model.encode(Inputs())
    with pytest.raises(ValueError, match="cannot be cut into patches of 8 x 8"):
        model.encode(Inputs(images(30, 32)))
    without_text = make_model(vocab_size=0)
    with pytest.raises(ValueError, match="vocab_size = 0"):
        without_text.encode(Inputs(None, text(), IS_VALID))


def test_inputs_without_a_mask_are_refused_by_name(model):
    masks = Masks(image=Selection.from_order(jnp.tile(jnp.arange(16), (4, 1)), 4))
    with pytest.raises(ValueError, match=r"masks\.text is None\. Draw a mask"):
        model.decode_hidden(pairs(), masks)


def test_words_that_are_dropped_count_for_nothing(model):
    kept = MaskingConfig(text_mask_ratio=0.5)
    dropped = dataclasses.replace(kept, text_dropout=1.0)
    every = {"num_patches": 16, "is_valid": IS_VALID}
    rows, key = jnp.arange(4), jax.random.key(7)
    masks = draw_masks(key, rows, dropped, **every)
    assert masks.text is not None
    inputs, ids = pairs(), text()
    others = ids.at[rows[:, None], masks.text.visible].add(1) % 50
    reconstruct = jax.jit(M3AE.reconstruct)
    first = reconstruct(model, inputs, masks)
    second = reconstruct(model, inputs._replace(text_ids=others), masks)
    np.testing.assert_array_equal(first.logits, second.logits)
    np.testing.assert_array_equal(first.patches, second.patches)
    seen = reconstruct(model, inputs, draw_masks(key, rows, kept, **every))
    assert np.abs(seen.logits[:2] - first.logits[:2]).max() > 1e-3
    half = masks._replace(drops_text=jnp.asarray([True, False, True, False]))
    mixed = reconstruct(model, inputs, half)
    np.testing.assert_allclose(mixed.logits[::2], first.logits[::2], atol=1e-5)
    np.testing.assert_allclose(mixed.logits[1::2], seen.logits[1::2], atol=1e-5)


def test_remat_and_unrolling_change_memory_and_not_results(model):
    loss, _, gradients = loss_and_gradients(model, batch())
    other = make_model(remat=True, unroll=3)
    other_loss, _, other_gradients = loss_and_gradients(other, batch())
    np.testing.assert_allclose(loss, other_loss, rtol=1e-6)
    for left, right in zip(
        jax.tree.leaves(gradients), jax.tree.leaves(other_gradients), strict=True
    ):
        np.testing.assert_allclose(left, right, atol=2e-6)


def test_a_block_keeps_what_products_and_attention_give_and_nothing_else():
    width, tokens = 32, 500

    class Queries(Operations):
        def attention(self, qkv, is_valid, num_heads):
            return packed(qkv)[:, :, 0]

    block = Block(
        TransformerConfig(num_layers=1, width=width, num_heads=2),
        ModelConfig(),
        key=jax.random.key(0),
        operations=Queries(),
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
    half = make_model(compute_dtype="bfloat16")
    loss, _, gradients = loss_and_gradients(half, batch())
    assert loss.dtype == jnp.float32
    assert gradients.cls_token.dtype == jnp.float32
    np.testing.assert_allclose(loss, loss_and_gradients(model, batch())[0], rtol=2e-2)


def parameter_names(config):
    shapes = jax.eval_shape(lambda: M3AE(config, key=jax.random.key(0)))
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]


def test_a_model_of_images_alone_has_no_text_parameters():
    names = parameter_names(ModelConfig(vocab_size=0))
    assert names
    assert not [name for name in names if "text" in name]


def test_queries_keys_and_values_are_one_kernel_whose_last_axis_holds_whole_heads(model):
    linear = model.encoder.blocks.attention_in
    assert linear.kernel.shape == (3, 32, 3, 32)
    assert linear.bias.shape == (3, 3, 32)
    # Xavier's bound for the matrix [width, 3 * width] that the reference stores.
    limit = (6 / (32 + 3 * 32)) ** 0.5
    assert 0.98 * limit < np.abs(linear.kernel).max() <= limit


def test_stored_position_codes_are_parameters_and_begin_as_the_computed_ones(model):
    assert not [name for name in parameter_names(CONFIG.model) if "positions" in name]
    stored: Any = make_model(stored_image_positions=16, stored_text_positions=12)
    np.testing.assert_allclose(stored.image.positions, image_positions((4, 4), 32), atol=1e-7)
    np.testing.assert_allclose(stored.text.positions, text_positions(12, 32), atol=1e-7)
    np.testing.assert_array_equal(encode(stored, pairs()).tokens, encode(model, pairs()).tokens)
    long = jnp.zeros((1, 13), jnp.int32)
    with pytest.raises(ValueError, match="13 tokens, but the model stores the positions of 12"):
        stored.encode(Inputs(None, long))


def test_a_decoder_too_stores_position_codes_that_begin_as_the_computed_ones(model):
    stored = make_model(stored_decoder_positions=16)
    np.testing.assert_allclose(
        stored.image.decoder_positions, image_positions((4, 4), 16), atol=1e-7
    )
    order = jnp.argsort(jax.random.uniform(jax.random.key(3), (4, 16)), axis=1)
    masks = Masks(image=Selection.from_order(order, 4))
    reconstruct = jax.jit(M3AE.reconstruct)
    wanted = reconstruct(model, Inputs(images()), masks).patches
    np.testing.assert_allclose(
        reconstruct(stored, Inputs(images()), masks).patches, wanted, rtol=0, atol=1e-6
    )
    moved = eqx.tree_at(lambda model: model.image.decoder_positions, stored, replace_fn=jnp.flip)
    assert np.abs(reconstruct(moved, Inputs(images()), masks).patches - wanted).max() > 0.01


def test_the_class_token_has_a_position_code_beside_stored_ones(model):
    assert not [name for name in parameter_names(CONFIG.model) if "cls_position" in name]
    stored: Any = make_model(stored_image_positions=16, stored_decoder_positions=16)
    order = jnp.argsort(jax.random.uniform(jax.random.key(3), (4, 16)), axis=1)
    masks = Masks(image=Selection.from_order(order, 4))
    moved = eqx.tree_at(lambda model: model.cls_position, stored, jnp.full(32, 0.5))
    summed = eqx.tree_at(lambda model: model.cls_token, stored, stored.cls_token + 0.5)
    np.testing.assert_array_equal(
        moved.embed(Inputs(images()), masks)[0], summed.embed(Inputs(images()), masks)[0]
    )
    shift = jnp.linspace(0, 1, 16)
    moved = eqx.tree_at(lambda model: model.decoder_cls_position, stored, shift)
    before, after = (
        model.embed_for_decoder(jnp.ones((4, 5, 32)), Inputs(images()), masks)[0]
        for model in (stored, moved)
    )
    np.testing.assert_array_equal(after[:, 1:], before[:, 1:])
    np.testing.assert_allclose(after[:, 0] - before[:, 0], jnp.tile(shift, (4, 1)), atol=1e-6)


@pytest.mark.parametrize("grid", [(4, 4), (6, 6), (3, 2), (4, 8), (7, 1)])
def test_stored_positions_of_other_grids_are_interpolated_along_rows_and_columns(grid):
    rows, columns = np.mgrid[:4, :4].reshape(2, 16)
    table = np.stack([rows, columns, np.ones(16)], axis=1)
    got = np.asarray(resized_positions(jnp.asarray(table, jnp.float32), grid))
    got = got.reshape(*grid, 3)
    np.testing.assert_allclose(got[..., 2], 1, atol=1e-6)
    np.testing.assert_allclose(got[..., 0], got[:, :1, 0] * np.ones(grid), atol=1e-6)
    np.testing.assert_allclose(got[..., 1], got[:1, :, 1] * np.ones(grid), atol=1e-6)
    if grid == (4, 4):
        np.testing.assert_array_equal(got.reshape(16, 3), table)
    for axis in (0, 1):  # The middle of the image stays the middle of the codes.
        np.testing.assert_allclose(got[..., axis].mean(), 1.5, atol=1e-5)
        assert (np.diff(got[..., axis], axis=axis) > 0).all()


def test_images_of_another_size_than_the_stored_positions_are_encoded():
    stored = make_model(stored_image_positions=16)
    larger = encode(stored, Inputs(images(48, 64)))
    assert larger.tokens.shape == (4, 1 + 6 * 8, 32)
    assert np.isfinite(larger.tokens).all()


def test_features_before_the_final_norm_become_those_after_it_by_the_norm(model):
    plain = jax.jit(functools.partial(M3AE.encode, final_norm=False))(model, pairs())
    layers = jax.jit(functools.partial(M3AE.encode_layers, final_norm=False))(model, pairs())
    normed = encode_layers(model, pairs())
    np.testing.assert_allclose(layers.tokens[-1], plain.tokens, atol=1e-6)
    np.testing.assert_array_equal(layers.tokens[:-1], normed.tokens[:-1])
    np.testing.assert_allclose(model.encoder.norm(plain.tokens), normed.tokens[-1], atol=1e-6)
    np.testing.assert_allclose(plain.image_mean, plain.tokens[:, 1:17].mean(axis=1), atol=1e-6)


def test_an_encoder_alone_has_the_encoders_values_and_reconstructs_nothing(model):
    decoder = dataclasses.replace(CONFIG.model.decoder, num_layers=0)
    alone = make_model(decoder=decoder)
    names = parameter_names(dataclasses.replace(CONFIG.model, decoder=decoder))
    assert not [name for name in names if "decoder" in name or "mask" in name or "head" in name]
    np.testing.assert_array_equal(encode(alone, pairs()).tokens, encode(model, pairs()).tokens)
    with pytest.raises(ValueError, match=r"decoder\.num_layers = 0 and reconstructs nothing"):
        alone.reconstruct(pairs(), Masks())
    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, decoder=decoder))
    with pytest.raises(UserError, match=r"^model\.decoder\.num_layers = 0 .* Set at least 1"):
        pretraining(config)


def test_the_exact_gelu_differs_a_little_from_its_approximation(model):
    exact = encode(make_model(activation="gelu_erf"), pairs()).tokens
    difference = np.abs(exact - encode(model, pairs()).tokens).max()
    assert 1e-6 < difference < 1e-2


def test_images_are_normalised_as_the_statistics_say_and_back():
    normalizer = Normalizer((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    pixels = batch()["paired"].images
    got: Any = make_inputs(Rows(images=pixels), normalizer, jnp.float32).images
    wanted = (np.asarray(pixels, np.float64) / 255 - normalizer.mean) / normalizer.std
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    np.testing.assert_allclose(normalizer.undo(got), np.asarray(pixels) / 255, atol=1e-6)


def test_only_marked_images_are_mirrored():
    pixels = batch()["paired"].images
    is_flipped = jnp.array([True, False, False, True])
    normalizer = Normalizer((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))
    got: Any = make_inputs(Rows(pixels, is_flipped), normalizer, jnp.float32).images
    np.testing.assert_allclose(got[1], pixels[1])
    np.testing.assert_allclose(got[0], pixels[0][:, ::-1])
