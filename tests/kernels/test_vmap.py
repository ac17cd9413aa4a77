"""Guards `jax.vmap` of the operations: it equals a loop, for values and for gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from m3ae_tpu.kernels.attention import attention, cudnn
from m3ae_tpu.kernels.cross_entropy import cross_entropy
from m3ae_tpu.kernels.cross_entropy import tpu as cross_entropy_tpu

INTERPRETED = pltpu.InterpretParams(uninitialized_memory="nan")
IMPLEMENTATIONS = [
    "auto",
    "xla",
    "tpu",
    pytest.param(
        "cudnn", marks=pytest.mark.skipif(not cudnn.is_here(), reason="needs an NVIDIA GPU")
    ),
]


@pytest.fixture(autouse=True)
def interpret_mode():
    with pltpu.force_tpu_interpret_mode(INTERPRETED):
        yield


def attention_inputs(dtype=jnp.bfloat16):
    """Draws qkv [3, 2, 9, 3, 64], a mask [3, 2, 9] and output gradients [3, 2, 9, 64]."""
    rng = np.random.default_rng(0)
    qkv, dout = (
        jnp.asarray(rng.standard_normal((3, 2, 9, *shape)), dtype) for shape in ((3, 64), (64,))
    )
    is_valid = rng.random((3, 2, 9)) < 0.6
    is_valid[0, 0] = False
    return qkv, jnp.asarray(is_valid), dout


def with_gradient(function):
    """Returns a function of qkv, mask and output gradient that yields output and gradient."""

    def both(qkv, is_valid, dout):
        out, pull_back = jax.vjp(lambda qkv: function(qkv, is_valid), qkv)
        return out, *pull_back(dout)

    return both


def assert_equal(got, want, dtype):
    # The last bit may differ: XLA fuses the operations of one and of several rows differently.
    tolerance = 2.0**-7 if dtype == jnp.bfloat16 else 2.0**-20
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert a.dtype == b.dtype
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max())


def loop(function, arguments, axes):
    """Computes `jax.vmap(function, axes)(*arguments)` one index at a time."""
    size = next(len(x) for x, axis in zip(arguments, axes, strict=True) if axis == 0)
    results = [
        function(*(x if axis is None else x[i] for x, axis in zip(arguments, axes, strict=True)))
        for i in range(size)
    ]
    return jax.tree.map(lambda *x: jnp.stack(x), *results)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("wrap", [jax.jit, lambda function: function], ids=["jit", "eager"])
def test_vmap_of_attention_equals_a_loop(implementation, wrap):
    qkv, is_valid, _ = attention_inputs()
    function = functools.partial(attention, num_heads=2, implementation=implementation)
    want = loop(jax.jit(function), (qkv, is_valid), (0, 0))
    assert_equal(wrap(jax.vmap(function))(qkv, is_valid), want, jnp.bfloat16)
    unmasked = functools.partial(function, is_valid=None)
    want = loop(jax.jit(unmasked), (qkv,), (0,))
    assert_equal(wrap(jax.vmap(unmasked))(qkv), want, jnp.bfloat16)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("axes", [(0, 0, 0), (0, None, 0), (None, 0, 0)])
def test_vmap_of_attentions_gradient_equals_a_loop(implementation, axes):
    arguments = [x if axis == 0 else x[1] for x, axis in zip(attention_inputs(), axes, strict=True)]
    function = with_gradient(
        functools.partial(attention, num_heads=2, implementation=implementation)
    )
    want = loop(jax.jit(function), arguments, axes)
    assert_equal(jax.jit(jax.vmap(function, axes))(*arguments), want, jnp.bfloat16)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("mask_axis", [0, None])
def test_gradient_of_attentions_vmap_equals_a_loops(implementation, mask_axis):
    qkv, is_valid, dout = attention_inputs()
    is_valid = is_valid if mask_axis == 0 else is_valid[1]
    function = functools.partial(attention, num_heads=2, implementation=implementation)
    mapped = with_gradient(jax.vmap(function, (0, mask_axis)))
    want = loop(jax.jit(with_gradient(function)), (qkv, is_valid, dout), (0, mask_axis, 0))
    assert_equal(jax.jit(mapped)(qkv, is_valid, dout), want, jnp.bfloat16)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradient_of_shared_queries_is_summed_over_the_mapped_axis(implementation):
    qkv, is_valid, dout = attention_inputs(
        jnp.bfloat16 if implementation == "cudnn" else jnp.float32
    )
    function = functools.partial(attention, num_heads=2, implementation=implementation)
    mapped = with_gradient(jax.vmap(function, (None, 0)))
    out, gradient = loop(jax.jit(with_gradient(function)), (qkv[1], is_valid, dout), (None, 0, 0))
    got = jax.jit(mapped)(qkv[1], is_valid, dout)
    assert_equal(got, (out, gradient.sum(0)), qkv.dtype)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_nested_vmap_of_attention_equals_a_loop(implementation):
    qkv, is_valid, _ = attention_inputs()
    function = functools.partial(attention, num_heads=2, implementation=implementation)

    def of_one(qkv, is_valid):
        return function(qkv[None], is_valid[None])[0]

    want = loop(jax.jit(function), (qkv, is_valid), (0, 0))
    got = jax.jit(jax.vmap(jax.vmap(of_one)))(qkv, is_valid)
    assert_equal(got, want, jnp.bfloat16)


def cross_entropy_inputs(dtype):
    """Draws tokens [3, 2, 5, 128] with their ids and mask, and a head of 130 ids."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((3, 2, 5, 128)), dtype)
    kernel, bias = (
        jnp.asarray(rng.standard_normal(shape) / 8, jnp.float32) for shape in ((128, 130), (130,))
    )
    ids = jnp.asarray(rng.integers(0, 130, (3, 2, 5)), jnp.int32)
    return x, kernel, bias, ids, jnp.asarray(rng.random((3, 2, 5)) < 0.6)


@pytest.mark.parametrize("implementation", ["auto", "chunked", "xla", "tpu"])
def test_vmap_of_cross_entropy_equals_a_loop(implementation, monkeypatch):
    # Small blocks compile in less time.
    for name, size in (("_TOKENS", 32), ("_COLUMNS", (256,)), ("_TILE", 128)):
        monkeypatch.setattr(cross_entropy_tpu, name, size)
    dtype = jnp.bfloat16 if implementation == "tpu" else jnp.float32
    arguments, axes = cross_entropy_inputs(dtype), (0, None, None, 0, 0)

    def function(x, kernel, bias, ids, is_counted):
        def loss(x, kernel, bias):
            rows = cross_entropy(x, kernel, bias, ids, is_counted, implementation=implementation)
            return rows.loss.sum(), rows

        return jax.grad(loss, argnums=(0, 1, 2), has_aux=True)(x, kernel, bias)

    want = loop(jax.jit(function), arguments, axes)
    assert_equal(jax.jit(jax.vmap(function, axes))(*arguments), want, dtype)
