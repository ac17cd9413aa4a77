"""Attention of packed queries, keys and values on TPUs: the Pallas calls and their gradient."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Bool, Float

from ...dispatch import interpret_mode
from ..block_sizes import blocks_for
from .backward import backward_kernel
from .forward import forward_kernel
from .tiling import LANES, Tiling, make_tiling

_MAX_TOKENS = 1024
_MAX_HEAD_DIM = 128
_ROW_BYTES = 24 * 2**20
"""VMEM that one row of the batch may take, at most; two copies of each array are held."""


def unsupported_reason(
    shape: tuple[int, int, int], dtype: jnp.dtype, num_heads: int, device_kind: str | None
) -> str | None:
    """Returns why the kernels do not support `qkv` of this shape [batch, tokens, 3 * width] on a
    device, or None if they do.
    """
    _, tokens, channels = shape
    head_dim = channels // 3 // num_heads
    if dtype not in (jnp.bfloat16, jnp.float32):
        return f"dtype = {dtype} is neither bfloat16 nor float32"
    if tokens > _MAX_TOKENS:
        return f"tokens = {tokens} is more than {_MAX_TOKENS}"
    if head_dim % 16 or head_dim > _MAX_HEAD_DIM:
        return f"a head's width of {head_dim} is not a multiple of 16 up to {_MAX_HEAD_DIM}"
    # The backward kernel holds qkv, its gradient, and that of the output.
    row_bytes = 2 * tokens * (2 * channels + channels // 3) * dtype.itemsize
    if row_bytes > _ROW_BYTES:
        return f"{tokens} tokens of {channels // 3} channels, {dtype}, do not fit into VMEM"
    try:
        blocks_for("attention_backward", device_kind, tokens, dtype)
    except NotImplementedError as error:
        return str(error)
    return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Static:
    """Arguments of a kernel call that are not arrays."""

    num_heads: int
    device_kind: str | None
    is_interpretable: bool


def attention(
    qkv: Float[Array, "batch tokens three_width"],
    is_valid: Bool[Array, "batch tokens"] | None,
    num_heads: int,
    *,
    device_kind: str | None = None,
    is_interpretable: bool = True,
) -> Float[Array, "batch tokens width"]:
    """Computes `reference.attention`; `unsupported_reason` must be None for the inputs.

    Args:
        qkv: As for `reference.attention`, the last two axes as one.
        is_valid: As for `reference.attention`.
        num_heads: Divides `width`.
        device_kind: Chip whose block sizes are taken.
        is_interpretable: Run on a CPU under `pltpu.force_tpu_interpret_mode()`; if False the mode
            is ignored.
    """
    static = Static(num_heads=num_heads, device_kind=device_kind, is_interpretable=is_interpretable)
    return _attention(qkv, key_bias(is_valid), static)


def key_bias(is_valid: Bool[Array, "batch tokens"] | None) -> Array | None:
    """Returns what is added to the logits of each key, float32 [batch, 1, tokens], or None."""
    if is_valid is None:
        return None
    # -inf, not a large number: no logit of a valid key can be smaller.
    return jnp.where(is_valid, 0.0, -jnp.inf).astype(jnp.float32)[:, None, :]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _attention(qkv: Array, bias: Array | None, static: Static) -> Array:
    (out,) = forward(qkv, bias, static, saves=False)
    return out


def _attention_fwd(qkv: Array, bias: Array | None, static: Static):
    out, softmax_terms = forward(qkv, bias, static, saves=True)
    return out, (qkv, bias, softmax_terms)


def _attention_bwd(static: Static, saved, dout: Array):
    qkv, bias, softmax_terms = saved
    (dqkv,) = backward(qkv, bias, softmax_terms, dout, static)
    return dqkv, None if bias is None else jnp.zeros_like(bias)


_attention.defvjp(_attention_fwd, _attention_bwd)


def forward(
    qkv: Array, bias: Array | None, static: Static, *, saves: bool, layer: Array | None = None
) -> tuple[Array, ...]:
    """Returns the output and, if `saves`, the softmax terms that the backward kernel needs.

    Args:
        qkv: Queries, keys and values; with a `layer`, a stack of them, of which it takes that one.
        bias: See `key_bias`.
        static: Arguments that are not arrays.
        saves: See above.
        layer: int32 [1].
    """

    def outputs(batch: int, tiling: Tiling) -> list[jax.ShapeDtypeStruct]:
        out = jax.ShapeDtypeStruct((batch, tiling.tokens, tiling.width), qkv.dtype)
        if not saves:
            return [out]
        terms = batch, tiling.groups, 2, tiling.stored_rows, LANES
        return [out, jax.ShapeDtypeStruct(terms, jnp.float32)]

    function = functools.partial(forward_kernel, is_masked=bias is not None, saves=saves)
    arrays = [qkv, *([] if bias is None else [bias])]
    return _call(_Kernel("attention_forward", function, outputs), static, layer, arrays)


def backward(
    qkv: Array,
    bias: Array | None,
    softmax_terms: Array,
    dout: Array,
    static: Static,
    *,
    layer: Array | None = None,
) -> tuple[Array, ...]:
    """Returns the gradient of queries, keys and values; arguments are as for `forward`."""

    def outputs(batch: int, tiling: Tiling) -> list[jax.ShapeDtypeStruct]:
        return [jax.ShapeDtypeStruct((batch, tiling.tokens, 3 * tiling.width), qkv.dtype)]

    function = functools.partial(backward_kernel, is_masked=bias is not None)
    arrays = [qkv, *([] if bias is None else [bias]), softmax_terms, dout]
    return _call(_Kernel("attention_backward", function, outputs), static, layer, arrays)


class _Kernel(NamedTuple):
    """One of the two kernels."""

    name: str
    function: Callable
    outputs: Callable[[int, Tiling], list[jax.ShapeDtypeStruct]]
    """Returns the shapes of the results for a batch."""


def _call(
    kernel: _Kernel, static: Static, layer: Array | None, arrays: Sequence[Array]
) -> tuple[Array, ...]:
    """Runs a kernel on arrays whose first axis is the batch, of which the first is qkv.

    `jax.vmap` adds its axis to the batch, so that programs of the grid keep their number of rows;
    stacks of layers are not mapped.
    """
    if layer is not None:
        return _run(kernel, static, layer, *arrays)

    @jax.custom_batching.custom_vmap
    def run(*arrays: Array) -> tuple[Array, ...]:
        return _run(kernel, static, None, *arrays)

    @run.def_vmap
    def run_mapped(axis_size: int, is_mapped: Sequence[bool], *arrays: Array):
        def fold(x: Array, has_axis: bool) -> Array:
            x = x if has_axis else jnp.broadcast_to(x[None], (axis_size, *x.shape))
            return x.reshape(-1, *x.shape[2:])

        folded = [fold(x, has_axis) for x, has_axis in zip(arrays, is_mapped, strict=True)]
        results = run(*folded)
        results = tuple(x.reshape(axis_size, -1, *x.shape[1:]) for x in results)
        return results, (True,) * len(results)

    return run(*arrays)


def _run(kernel: _Kernel, static: Static, layer: Array | None, *arrays: Array) -> tuple[Array, ...]:
    batch, tokens, channels = shape = arrays[0].shape[-3:]
    dtype = arrays[0].dtype
    blocks = blocks_for(kernel.name, static.device_kind, tokens, dtype)
    tiling = make_tiling(batch, tokens, channels // 3, static.num_heads, dtype, blocks)
    results = kernel.outputs(batch, tiling)
    layers = [] if layer is None else [layer]

    def block(array) -> pl.BlockSpec:
        whole = tuple(0 for _ in array.shape[1:])
        return pl.BlockSpec((tiling.rows, *array.shape[1:]), lambda i, *_: (i, *whole))

    own = block(jax.ShapeDtypeStruct(shape, dtype))
    if layers:
        own = pl.BlockSpec((None, tiling.rows, *shape[1:]), lambda i, layer: (layer[0], i, 0, 0))

    def of_blocks(*refs):
        kernel.function(*refs[len(layers) :], tiling=tiling)

    with interpret_mode(is_allowed=static.is_interpretable):
        call = pl.pallas_call(
            of_blocks,
            # Readers of the compiled program then know that of the stack one layer is read.
            name=f"{kernel.name}_in_stack" if layers else kernel.name,
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=len(layers),
                grid=(batch // tiling.rows,),
                in_specs=[own, *(block(x) for x in arrays[1:])],
                out_specs=[block(x) for x in results],
            ),
            out_shape=results,
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel",), vmem_limit_bytes=blocks.vmem_limit_bytes
            ),
        )
        return tuple(call(*layers, *arrays))
