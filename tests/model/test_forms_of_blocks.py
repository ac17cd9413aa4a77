"""Guards the forms of a block: the same values and gradients as those of a CPU, in float64."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m3ae_tpu.batch import Rows
from m3ae_tpu.config import ModelConfig, TransformerConfig
from m3ae_tpu.configs import debug
from m3ae_tpu.model.m3ae import M3AE
from m3ae_tpu.model.rewrites import (
    gelu_by_sigmoid,
    gelu_of_kept_input,
    moments,
    norm_of_moments,
    standardize,
)
from m3ae_tpu.model.transformer import LayerNorm, Transformer
from m3ae_tpu.parallel import operations
from m3ae_tpu.parallel.forms import Forms, forms_of
from m3ae_tpu.parallel.mesh import make_mesh
from m3ae_tpu.parallel.operations import Operations
from m3ae_tpu.train.pretraining import pretraining

GPU = forms_of("gpu")
# Those of a TPU without its kernels, which are of float32 at most.
TPU = forms_of("tpu")._replace(keeps_qkv_in_stack=False)
MODEL = ModelConfig(
    patch_size=8,
    vocab_size=50,
    encoder=TransformerConfig(num_layers=2, width=32, num_heads=4),
    decoder=TransformerConfig(num_layers=1, width=16, num_heads=2),
    compute_dtype="float64",
    parameter_dtype="float64",
)


def gelu(x):
    return jax.nn.gelu(x, approximate=True)


@pytest.fixture(autouse=True)
def _in_float64():
    with (
        jax.enable_x64(True),
        jax.numpy_dtype_promotion("standard"),
        jax.default_matmul_precision("highest"),
    ):
        yield


def assert_equal_with_gradients(function, other, x, tolerance=1e-12):
    cotangent = jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)
    (got, pull_back), (expected, expected_pull_back) = (
        jax.vjp(each, x) for each in (function, other)
    )
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)
    (got,), (expected,) = pull_back(cotangent), expected_pull_back(cotangent)
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


def test_a_standardized_array_has_the_gradient_of_its_definition():
    def plain(x):
        centred = x - x.mean(-1, keepdims=True)
        return centred / jnp.sqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-6)

    x = 3 + 2 * jax.random.normal(jax.random.key(0), (2, 5, 24), jnp.float64)
    assert_equal_with_gradients(lambda x: standardize(x, 1e-6), plain, x)


def test_a_norm_of_its_moments_has_the_gradients_of_a_layer_norm():
    norm = LayerNorm(24, dtype=jnp.float64)
    x, scale, bias = (
        jax.random.normal(key, shape, jnp.float64)
        for key, shape in zip(
            jax.random.split(jax.random.key(0), 3), [(2, 5, 24), (24,), (24,)], strict=True
        )
    )

    def plain(x, scale, bias):
        return eqx.tree_at(lambda norm: (norm.scale, norm.bias), norm, (scale, bias))(x)

    def of_moments(x, scale, bias):
        return norm_of_moments(x, moments(x, norm.epsilon), scale, bias)

    (got, pull_back), (expected, expected_pull_back) = (
        jax.vjp(function, 3 + 2 * x, scale, bias) for function in (of_moments, plain)
    )
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)
    for left, right in zip(pull_back(jnp.cos(x)), expected_pull_back(jnp.cos(x)), strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", [gelu, gelu_by_sigmoid])
def test_gelu_of_a_kept_input_is_gelu(form):
    x = jnp.linspace(-9, 9, 400, dtype=jnp.float64).reshape(1, 20, 20)
    assert_equal_with_gradients(lambda x: gelu_of_kept_input(x, form), gelu, x)


@pytest.mark.parametrize(
    ("function", "kept"),
    [(lambda x: standardize(x, 1e-6), 1), (lambda x: gelu_of_kept_input(x, gelu), 1)],
)
def test_the_input_alone_is_kept(function, kept):
    x = jnp.ones((2, 7, 16), jnp.bfloat16)
    _, pull_back = jax.vjp(function, x)
    assert [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(pull_back)] == [
        (x.shape, x.dtype)
    ] * kept


def drawn(model, key):
    """Returns a model with values in every scale and bias, which begin as 1 and 0."""
    leaves, tree = jax.tree.flatten(model)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(
        tree,
        [
            leaf + 0.3 * jax.random.normal(key, leaf.shape, leaf.dtype)
            for leaf, key in zip(leaves, keys, strict=True)
        ],
    )


def loss_and_gradients(monkeypatch, forms, **changes):
    """Computes a step's loss and gradients in the forms; also the primitives of its loss."""
    monkeypatch.setattr(operations, "forms_of", lambda platform: forms)
    config = dataclasses.replace(debug.CONFIG, model=dataclasses.replace(MODEL, **changes))
    of_mesh = Operations(make_mesh(devices=jax.devices()[:1]))
    model = drawn(M3AE(config.model, key=jax.random.key(0), operations=of_mesh), jax.random.key(1))
    pixels = jax.random.randint(jax.random.key(2), (4, 32, 32, 3), 0, 256).astype(jnp.uint8)
    ids = jax.random.randint(jax.random.key(3), (4, 10), 1, 50)
    is_valid = jnp.arange(10)[None] < jnp.array([10, 6, 1, 0])[:, None]
    batch = {"paired": Rows(pixels, None, ids, is_valid)}
    rows = {"paired": jnp.arange(4, dtype=jnp.int32)}
    arguments = model, batch, rows, jax.random.key(4)
    traced = jax.jit(jax.value_and_grad(pretraining(config).loss, has_aux=True)).trace(*arguments)
    (loss, _), gradients = traced.lower().compile()(*arguments)
    return loss, gradients, str(traced.jaxpr)


def test_other_devices_forms_give_the_loss_and_gradients_of_a_cpu(monkeypatch):
    loss, gradients, _ = loss_and_gradients(monkeypatch, Forms())
    for forms, changes in (
        (GPU, {}),
        (GPU._replace(has_gelu_epilogue=False), {}),
        (TPU, {}),
        (TPU, {"remat": True}),
    ):
        other, other_gradients, jaxpr = loss_and_gradients(monkeypatch, forms, **changes)
        np.testing.assert_allclose(other, loss, rtol=1e-13)
        paths = jax.tree_util.tree_leaves_with_path(gradients)
        for (path, left), right in zip(paths, jax.tree.leaves(other_gradients), strict=True):
            name = jax.tree_util.keystr(path)
            np.testing.assert_allclose(right, left, rtol=1e-10, atol=1e-13, err_msg=name)
        assert ("optimization_barrier" in jaxpr) == forms.folds_norms


def test_layers_are_unrolled_on_gpus_where_neither_remat_nor_a_number_says_otherwise(monkeypatch):
    def unroll(forms, **changes):
        monkeypatch.setattr(operations, "forms_of", lambda platform: forms)
        config = dataclasses.replace(MODEL, **changes)
        of_mesh = Operations(make_mesh(devices=jax.devices()[:1]))
        return jax.eval_shape(
            lambda: Transformer(config.encoder, config, key=jax.random.key(0), operations=of_mesh)
        ).unroll

    assert unroll(Forms()) == unroll(GPU, remat=True) == 1
    assert unroll(GPU) == MODEL.encoder.num_layers == 2
    assert [unroll(GPU, unroll=number) for number in (1, 2)] == [1, 2]
