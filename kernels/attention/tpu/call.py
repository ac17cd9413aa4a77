"""Attention of packed queries, keys and values on TPUs: the Pallas kernels as differentiable
operations of JAX.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.extend.core import Primitive
from jax.interpreters import mlir
from jaxtyping import Array, Bool, Float

from ..block_sizes import Blocks, blocks_for
from .backward import backward_kernel
from .forward import forward_kernel
from .tiling import LANES, group_width, make_cut, statistics_rows

_MAX_TOKENS = 1024
_MAX_HEAD_DIM = 128
_ROW_BYTES = 24 * 2**20
"""Most of VMEM that one row of the batch may take, its arrays held twice."""


def unsupported_reason(shape: tuple[int, int, int], dtype: jnp.dtype, num_heads: int) -> str | None:
    """Returns why the kernels do not take `qkv` of this shape [batch, tokens, 3 * width], or None
    if they do.
    """
    _, tokens, channels = shape
    head_dim = channels // 3 // num_heads
    if dtype not in (jnp.bfloat16, jnp.float32):
        return f"dtype = {dtype} is neither bfloat16 nor float32"
    if tokens > _MAX_TOKENS:
        return f"tokens = {tokens} is more than {_MAX_TOKENS}"
    if head_dim % 16 or head_dim > _MAX_HEAD_DIM:
        return f"a head's width of {head_dim} is no multiple of 16 up to {_MAX_HEAD_DIM}"
    # In the backward kernel: qkv and its gradient, and that of the output.
    row_bytes = 2 * tokens * (2 * channels + channels // 3) * dtype.itemsize
    if row_bytes > _ROW_BYTES:
        return f"{tokens} tokens of {channels // 3} channels, {dtype}, do not fit into VMEM"
    if jax.default_backend() == "tpu":
        try:
            blocks_for("attention_backward", jax.devices()[0].device_kind, tokens, dtype)
        except NotImplementedError as error:
            return str(error)
    return None


def attention(
    qkv: Float[Array, "batch tokens three_width"],
    valid: Bool[Array, "batch tokens"] | None,
    num_heads: int,
) -> Float[Array, "batch tokens width"]:
    """Computes what `reference.attention` does, for shapes that `unsupported_reason` has no
    objection to.

    Takes the block sizes of the chip that the program is lowered for. On a CPU it runs under
    `pltpu.force_tpu_interpret_mode()` only.
    """
    # -inf, not a large number: no logit of a valid key is ever smaller.
    bias = (
        None if valid is None else jnp.where(valid, 0.0, -jnp.inf).astype(jnp.float32)[:, None, :]
    )
    return _attention(qkv, bias, num_heads)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _attention(qkv: Array, bias: Array | None, num_heads: int) -> Array:
    return _run_forward(*_present(qkv, bias), num_heads=num_heads, saves=False)[0]


def _attention_fwd(qkv: Array, bias: Array | None, num_heads: int):
    out, statistics = _run_forward(*_present(qkv, bias), num_heads=num_heads, saves=True)
    return out, (qkv, bias, statistics)


def _attention_bwd(num_heads: int, saved, dout: Array):
    qkv, bias, statistics = saved
    (dqkv,) = _run_backward(
        *_present(qkv, bias, statistics, dout), num_heads=num_heads, masked=bias is not None
    )
    return dqkv, None if bias is None else jnp.zeros_like(bias)


_attention.defvjp(_attention_fwd, _attention_bwd)


def _present(*arrays: Array | None) -> list[Array]:
    return [x for x in arrays if x is not None]


def _forward_shapes(qkv, *bias, num_heads: int, saves: bool) -> list:
    """The output, and for the backward kernel the largest score and log2 of the sum by group and
    unit.
    """
    batch, tokens, width = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    out = ShapedArray((batch, tokens, width), qkv.dtype)
    if not saves:
        return [out]
    size = group_width(width, width // num_heads)
    heads = size // (width // num_heads)
    shape = batch, width // size, 2, statistics_rows(tokens, heads), LANES
    return [out, ShapedArray(shape, jnp.dtype(jnp.float32))]


def _backward_shapes(qkv, *rest, num_heads: int, masked: bool) -> list:
    return [ShapedArray(qkv.shape, qkv.dtype)]


def _forward(
    qkv: Array, *bias: Array, num_heads: int, saves: bool, device_kind: str | None
) -> Sequence[Array]:
    blocks = blocks_for("attention_forward", device_kind, qkv.shape[1], qkv.dtype)
    outputs = _forward_shapes(qkv, num_heads=num_heads, saves=saves)
    kernel = functools.partial(forward_kernel, masked=bool(bias), saves=saves)
    return _call(kernel, "attention_forward", blocks, num_heads, [qkv, *bias], outputs)


def _backward(
    qkv: Array, *rest: Array, num_heads: int, masked: bool, device_kind: str | None
) -> Sequence[Array]:
    blocks = blocks_for("attention_backward", device_kind, qkv.shape[1], qkv.dtype)
    outputs = _backward_shapes(qkv, num_heads=num_heads, masked=masked)
    kernel = functools.partial(backward_kernel, masked=masked)
    return _call(kernel, "attention_backward", blocks, num_heads, [qkv, *rest], outputs)


def _call(
    kernel: Callable, name: str, blocks: Blocks, num_heads: int, inputs: Sequence, outputs: Sequence
):
    batch, tokens, channels = inputs[0].shape
    cut = make_cut(batch, tokens, channels // 3, num_heads, blocks)

    def block(array) -> pl.BlockSpec:
        return pl.BlockSpec(
            (cut.rows, *array.shape[1:]), lambda i: (i, *(0 for _ in array.shape[1:]))
        )

    return pl.pallas_call(
        functools.partial(kernel, cut=cut),
        name=name,
        grid=(batch // cut.rows,),
        in_specs=[block(x) for x in inputs],
        out_specs=[block(x) for x in outputs],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in outputs],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",), vmem_limit_bytes=blocks.vmem_limit_bytes
        ),
    )(*inputs)


def _operation(name: str, shapes: Callable, function: Callable) -> Callable:
    """Returns an operation that becomes its kernel when a program is lowered: only then is the chip
    known.

    It also spares programs for other devices the tracing of kernels that they do not use.
    """
    primitive = Primitive(name)
    primitive.multiple_results = True
    primitive.def_abstract_eval(shapes)
    primitive.def_impl(
        lambda *args, **kwargs: jax.jit(functools.partial(primitive.bind, **kwargs))(*args)
    )

    def lower(context, *args, **kwargs):
        call = functools.partial(function, device_kind=_device_kind(context))
        return mlir.lower_fun(call, multiple_results=True)(context, *args, **kwargs)

    def apply(*args, **kwargs):
        if interprets():  # Callbacks keep their order, which a rule for lowering cannot promise.
            return function(*args, **kwargs, device_kind=None)
        return primitive.bind(*args, **kwargs)

    mlir.register_lowering(primitive, lower)
    return apply


def interprets() -> bool:
    """Tells whether `pltpu.force_tpu_interpret_mode()` is on: kernels then have effects on the
    host.
    """
    nothing = pl.pallas_call(
        lambda out_ref: None, out_shape=jax.ShapeDtypeStruct((8, 128), jnp.float32)
    )
    return bool(jax.make_jaxpr(nothing)().effects)


def _device_kind(context: mlir.LoweringRuleContext) -> str | None:
    """The kind of TPU that a program is lowered for; None where no TPU in particular is asked for."""
    backend = context.module_context.backend  # Also of chips that are described, not here.
    device = backend.devices()[0] if backend is not None else None
    if device is None or device.platform != "tpu":
        device = jax.sharding.get_abstract_mesh().abstract_device
    return device.device_kind if device is not None else None


_run_forward = _operation("attention_tpu_forward", _forward_shapes, _forward)
_run_backward = _operation("attention_tpu_backward", _backward_shapes, _backward)
