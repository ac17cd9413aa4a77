"""Guards attention in a scan whose kernels read a stack of all layers: it is attention, forward and
backward, and what a layer leaves in the stack is its own.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from m3ae_tpu.kernels.attention.tpu.call import attention
from m3ae_tpu.kernels.attention.tpu.stack import attention_in_stack, keep_stack

LAYERS, ROWS, TOKENS, HEADS, WIDTH = 3, 2, 9, 2, 32


@functools.cache
def inputs():
    keys = jax.random.split(jax.random.key(0), 4)
    weights = jax.random.normal(keys[0], (LAYERS, WIDTH, 3 * WIDTH)) / WIDTH**0.5
    x = jax.random.normal(keys[1], (ROWS, TOKENS, WIDTH))
    is_valid = jax.random.bernoulli(keys[2], 0.7, (ROWS, TOKENS)).at[1].set(False)
    return weights, x, is_valid, jax.random.normal(keys[3], x.shape)


def by_slices(weights, x, is_valid):
    def layer(x, weight):
        return x + attention(x @ weight, is_valid, HEADS), None

    return jax.lax.scan(layer, x, weights)[0]


def in_stack(weights, x, is_valid):
    def layer(carry, weight_and_number):
        (x, stack), (weight, number) = carry, weight_and_number
        out, stack = attention_in_stack(x @ weight, stack, number, is_valid, HEADS)
        return (x + out, stack), None

    stack = jax.lax.empty((LAYERS, ROWS, TOKENS, 3 * WIDTH), x.dtype)
    numbers = jnp.arange(LAYERS, dtype=jnp.int32)
    (x, stack), _ = jax.lax.scan(layer, (x, stack), (weights, numbers))
    return keep_stack(x, stack)


def results(function, *, is_masked):
    weights, x, is_valid, dout = inputs()
    with pltpu.force_tpu_interpret_mode():
        out, pull_back = jax.vjp(
            lambda weights, x: function(weights, x, is_valid if is_masked else None), weights, x
        )
        return out, *pull_back(dout)


@pytest.mark.parametrize("is_masked", [True, False])
def test_results_and_gradients_are_those_of_attention_bit_for_bit(is_masked):
    got, wanted = (results(function, is_masked=is_masked) for function in (in_stack, by_slices))
    for left, right in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(left, right)
    assert all(np.abs(gradient).max() > 0 for gradient in got[1:])
