"""Attention of packed queries, keys and values on Hopper GPUs: the Pallas calls and their
gradient.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from . import backward, forward
from .operands import TILE

_HEAD_DIMS = 32, 64
_MAX_TOKENS = 512
"""Queries, keys and values of one head fit into shared memory."""


def unsupported_reason(dtype: jnp.dtype, tokens: int, head_dim: int) -> str | None:
    """Returns why the kernels do not support rows of this shape, or None if they do."""
    if dtype != jnp.bfloat16:
        return f"dtype = {dtype} is not bfloat16"
    if head_dim not in _HEAD_DIMS:
        return f"a head's width of {head_dim} is neither 32 nor 64"
    if tokens > _MAX_TOKENS:
        return f"tokens = {tokens} is more than {_MAX_TOKENS}"
    return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Static:
    """Arguments that are not arrays."""

    num_heads: int
    is_masked: bool


def attention(
    qkv: Float[Array, "batch tokens three_width"],
    is_valid: Bool[Array, "batch tokens"] | None,
    num_heads: int,
) -> Float[Array, "batch tokens width"]:
    """Computes `reference.attention`; `unsupported_reason` must be None for the inputs.

    Args:
        qkv: As for `reference.attention`, the last two axes as one.
        is_valid: As for `reference.attention`.
        num_heads: Divides `width`.
    """
    bias = None
    if is_valid is not None:
        tokens = qkv.shape[1]
        bias = _bias(jnp.pad(is_valid, ((0, 0), (0, _rows(tokens) - tokens))))
    out: Any = _attention(qkv, bias, _Static(num_heads=num_heads, is_masked=bias is not None))
    return out


def _bias(is_key: Array) -> Array:
    return jnp.where(is_key, 0.0, -jnp.inf).astype(jnp.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _attention(qkv: Array, bias: Array | None, static: _Static) -> Array:
    return _forward(qkv, bias, static)[0]


def _attention_fwd(qkv: Array, bias: Array | None, static: _Static):
    out, lse = _forward(qkv, bias, static)
    return out, (qkv, bias, out, lse)


def _attention_bwd(static: _Static, saved, dout: Array):
    qkv, bias, out, lse = saved
    tokens = qkv.shape[1]
    bias_or_end = _bias(jnp.arange(_rows(tokens))[None] < tokens) if bias is None else bias
    arrays = [qkv, bias_or_end, out, lse, dout]
    (dqkv,) = _call(
        backward.attention_backward, backward.scratch, static, arrays, lambda qkv: [qkv]
    )
    return dqkv, None if bias is None else jnp.zeros_like(bias)


_attention.defvjp(_attention_fwd, _attention_bwd)


def _forward(qkv: Array, bias: Array | None, static: _Static) -> tuple[Array, ...]:
    """Returns the output and log2-sum-exps [batch, heads, rows of whole tiles]."""

    def outputs(qkv) -> list[jax.ShapeDtypeStruct]:
        batch, tokens, channels = qkv.shape
        lse = batch, static.num_heads, _rows(tokens)
        return [
            jax.ShapeDtypeStruct((batch, tokens, channels // 3), qkv.dtype),
            jax.ShapeDtypeStruct(lse, jnp.float32),
        ]

    arrays = [qkv, *([] if bias is None else [bias])]
    return _call(forward.attention_forward, forward.scratch, static, arrays, outputs)


def _rows(tokens: int) -> int:
    return -(-tokens // TILE) * TILE


def _call(
    function: Callable,
    scratch: Callable,
    static: _Static,
    arrays: Sequence[Array],
    outputs: Callable,
) -> tuple[Array, ...]:
    """Runs a kernel on arrays whose first axis is the batch, of which the first is qkv.

    `outputs(qkv)` returns the shapes of the results. `jax.vmap` adds its axis to the batch.
    """

    @jax.custom_batching.custom_vmap
    def run(*arrays: Array) -> tuple[Array, ...]:
        batch, tokens, channels = arrays[0].shape
        head_dim = channels // 3 // static.num_heads
        kernel = functools.partial(function, head_dim=head_dim, is_masked=static.is_masked)
        kernel = functools.update_wrapper(kernel, function)  # Its name is the kernel's.
        call = plgpu.kernel(
            kernel,
            out_type=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outputs(arrays[0])],
            scratch_types=scratch(_rows(tokens), head_dim),
            grid=(static.num_heads, batch),
            grid_names=("heads", "batch"),
            compiler_params=plgpu.CompilerParams(approx_math=True),
        )
        return tuple(call(*arrays))

    @run.def_vmap
    def run_mapped(axis_size: int, is_mapped: Sequence[bool], *arrays: Array):
        def fold(x: Array, has_axis: bool) -> Array:
            x = x if has_axis else jnp.broadcast_to(x[None], (axis_size, *x.shape))
            return x.reshape(-1, *x.shape[2:])

        results = run(*[fold(x, has_axis) for x, has_axis in zip(arrays, is_mapped, strict=True)])
        results = tuple(x.reshape(axis_size, -1, *x.shape[1:]) for x in results)
        return results, (True,) * len(results)

    return run(*arrays)
