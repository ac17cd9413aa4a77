"""Attention in a scan over layers, whose kernels read and keep qkv in one stack of all layers.

What a scan keeps for its gradient it copies into stacks, and copies out of them for a kernel, whose
operands must be arrays of their own. Here the stack itself is the operand, and the kernels take one
layer of it: the projection writes its result into the stack, and nothing is copied.

    stack = jax.lax.empty((layers, batch, tokens, 3 * width), dtype)
    (x, stack), _ = jax.lax.scan(layers, (x, stack), ...)  # Each calls `attention_in_stack`.
    x = keep_stack(x, stack)

Forward, the stack is carried from layer to layer. Backward, the finished stack has to be in reach
of every layer. It takes the path of the stack's cotangent, on which nothing else travels:
`keep_stack` hands it back in place of a gradient, and each layer passes it on.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .call import Static, backward, forward, key_bias, unsupported_reason


def is_supported(
    shape: tuple[int, int, int], dtype: jnp.dtype, num_heads: int, device_kind: str | None
) -> bool:
    """Returns if the kernels support qkv of this shape [batch, tokens, 3 * width] on a device."""
    return unsupported_reason(shape, dtype, num_heads, device_kind) is None


def attention_in_stack(
    qkv: Float[Array, "batch tokens three_width"],
    stack: Float[Array, "layers batch tokens three_width"],
    layer: Int[Array, ""],
    is_valid: Bool[Array, "batch tokens"] | None,
    num_heads: int,
    *,
    device_kind: str | None = None,
    is_interpretable: bool = True,
) -> tuple[Float[Array, "batch tokens width"], Array]:
    """Computes `call.attention`, and returns the stack with this layer's qkv too.

    Without a gradient the stack stays as it is, and is not needed.

    Args:
        qkv: As for `call.attention`.
        stack: Empty, or of the layer before.
        layer: This layer's place in the stack, int32.
        is_valid: As for `call.attention`.
        num_heads: As for `call.attention`.
        device_kind: As for `call.attention`.
        is_interpretable: As for `call.attention`.
    """
    static = Static(num_heads=num_heads, device_kind=device_kind, is_interpretable=is_interpretable)
    return _attention(qkv, stack, layer, key_bias(is_valid), static)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(qkv: Array, stack: Array, layer: Array, bias: Array | None, static: Static):
    (out,) = forward(qkv, bias, static, saves=False)
    return out, stack


def _attention_fwd(qkv: Array, stack: Array, layer: Array, bias: Array | None, static: Static):
    stack = jax.lax.dynamic_update_index_in_dim(stack, qkv, layer, 0)
    out, softmax_terms = forward(stack, bias, static, saves=True, layer=layer[None])
    return (out, stack), (layer, bias, softmax_terms)


def _attention_bwd(static: Static, saved, cotangents: tuple[Array, Array]):
    layer, bias, softmax_terms = saved
    dout, stack = cotangents
    (dqkv,) = backward(stack, bias, softmax_terms, dout, static, layer=layer[None])
    return dqkv, stack, None, None if bias is None else jnp.zeros_like(bias)


_attention.defvjp(_attention_fwd, _attention_bwd)


@jax.custom_vjp
def keep_stack(x: Array, stack: Array) -> Array:
    """Returns x, the result of all layers; its gradient needs the stack that they filled."""
    return x


def _keep_stack_fwd(x: Array, stack: Array):
    return x, stack


def _keep_stack_bwd(stack: Array, dx: Array):
    return dx, stack


keep_stack.defvjp(_keep_stack_fwd, _keep_stack_bwd)
