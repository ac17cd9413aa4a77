"""Norms and GELU with gradients of their own, as one kind of device or another computes them best.

Those of GPUs compute again from the input, and keep it alone. Where layers are unrolled, the
compiler shares equal values of the forward and the backward pass, and writes them to memory for
it: a barrier on the input keeps both apart.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

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


class Moments(NamedTuple):
    """Mean and deviation of the channels of each token, float32 or wider."""

    mean: Float[Array, "batch tokens"]
    inverse: Float[Array, "batch tokens"]
    """1 / sqrt(variance + epsilon)."""


def moments(x: Float[Array, "batch tokens width"], epsilon: float) -> Moments:
    """Returns the moments of x for `norm_of_moments`, which has the gradient of both."""
    x = jax.lax.stop_gradient(x).astype(np.promote_types(x.dtype, np.float32))
    mean = x.mean(axis=-1)
    variance = jnp.square(x - mean[:, :, None]).mean(axis=-1)
    return Moments(mean, jax.lax.rsqrt(variance + epsilon))


@jax.custom_vjp
def norm_of_moments(
    x: Float[Array, "batch tokens width"],
    kept: Moments,
    scale: Float[Array, " width"],
    bias: Float[Array, " width"],
) -> Float[Array, "batch tokens width"]:
    """Computes the layer norm of x from its `moments`.

    With them at hand, no sum of its gradient waits for another one: the product before takes them
    all, where each would be a pass over x.
    """
    y = _standardized_by(x, kept)
    return (y * scale.astype(y.dtype)[None, None] + bias.astype(y.dtype)[None, None]).astype(
        x.dtype
    )


def _standardized_by(x: Array, kept: Moments) -> Array:
    return (x.astype(kept.mean.dtype) - kept.mean[:, :, None]) * kept.inverse[:, :, None]


def _norm_forward(x: Array, kept: Moments, scale: Array, bias: Array):
    return norm_of_moments(x, kept, scale, bias), (x, kept, scale, bias)


def _norm_backward(saved: tuple[Array, Moments, Array, Array], dy: Array):
    x, kept, scale, bias = saved
    y = _standardized_by(x, kept)
    wide = dy.astype(y.dtype)
    scaled = wide * scale.astype(y.dtype)[None, None]
    mean, slope = (z.mean(axis=-1)[:, :, None] for z in (scaled, scaled * y))
    dx = ((scaled - mean - y * slope) * kept.inverse[:, :, None]).astype(dy.dtype)
    dscale, dbias = (z.sum(axis=(0, 1)) for z in (wide * y, wide))
    return dx, None, dscale.astype(scale.dtype), dbias.astype(bias.dtype)


norm_of_moments.defvjp(_norm_forward, _norm_backward)


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
