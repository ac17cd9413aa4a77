"""Norm and GELU with gradients of their own: they compute again from the input, and keep it alone.

Where layers are unrolled, the compiler shares equal values of the forward and the backward pass,
and writes them to memory for it. A barrier on the input keeps both apart.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def standardize(x: Float[Array, "*rows width"], epsilon: float) -> Float[Array, "*rows width"]:
    """Computes (x - mean) / sqrt(variance + epsilon) over the last axis, in float32 or wider."""
    return _standardized(x, epsilon)[0].astype(x.dtype)


def _standardized(x: Array, epsilon: float) -> tuple[Array, Array]:
    """Returns the standardized values and 1 / deviation, both wide."""
    wide = np.promote_types(x.dtype, np.float32)
    y = x.astype(wide)
    y = y - y.mean(axis=-1, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + epsilon)
    return y * inverse, inverse


def _standardize_forward(x: Array, epsilon: float) -> tuple[Array, Array]:
    return standardize(x, epsilon), x


def _standardize_backward(epsilon: float, x: Array, dy: Array) -> tuple[Array]:
    y, inverse = _standardized(jax.lax.optimization_barrier(x), epsilon)
    wide = dy.astype(y.dtype)
    mean, slope = (z.mean(axis=-1, keepdims=True) for z in (wide, wide * y))
    return (((wide - mean - y * slope) * inverse).astype(dy.dtype),)


standardize.defvjp(_standardize_forward, _standardize_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gelu_of_kept_input(
    x: Float[Array, "batch tokens hidden"], gelu: Callable[[Array], Array]
) -> Float[Array, "batch tokens hidden"]:
    """Computes gelu(x)."""
    return gelu(x)


def _gelu_forward(x: Array, gelu: Callable[[Array], Array]) -> tuple[Array, Array]:
    return gelu(x), x


def _gelu_backward(gelu: Callable[[Array], Array], x: Array, dy: Array) -> tuple[Array]:
    _, pull_back = jax.vjp(gelu, jax.lax.optimization_barrier(x))
    return pull_back(dy)


gelu_of_kept_input.defvjp(_gelu_forward, _gelu_backward)


def gelu_by_sigmoid(x: Float[Array, "batch tokens hidden"]) -> Float[Array, "batch tokens hidden"]:
    """Computes GELU by its tanh approximation as x sigmoid(2 sqrt(2 / pi) (x + 0.044715 x^3)).

    XLA does not take this form for cuBLASLt's epilogue. Computed in float32 or wider.
    """
    wide = x.astype(np.promote_types(x.dtype, np.float32))
    inner = (8 / np.pi) ** 0.5 * (wide + 0.044715 * wide**3)
    return (wide * jax.nn.sigmoid(inner)).astype(x.dtype)
