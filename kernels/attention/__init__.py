"""Attention of packed queries, keys and values: the public function, and the choice per device."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from ..dispatch import device_kind_of, local_tpu_kind
from . import cudnn, reference
from .tpu import call as attention_tpu

type Implementation = Literal["auto", "tpu", "cudnn", "hopper", "xla"]
type Parts = tuple[
    Float[Array, "batch tokens width"],
    Float[Array, "batch tokens width"],
    Float[Array, "batch tokens width"],
]
"""Queries, keys and values, apart."""


def attention(
    qkv: Float[Array, "batch tokens 3 width"] | Float[Array, "batch tokens three_width"] | Parts,
    is_valid: Bool[Array, "batch tokens"] | None,
    num_heads: int,
    *,
    implementation: Implementation = "auto",
    device_kind: str | None = None,
) -> Float[Array, "batch tokens width"]:
    """Computes multi-head attention, softmax(query keyᵀ / √head_dim) value, within each row.

    Logits, softmax and sums are float32 or wider; float32 inputs are multiplied without rounding
    them (`Precision.HIGHEST`) by the TPU kernel. The output has the dtype of `qkv`. Differentiable
    in `qkv`; `jax.vmap` adds its axis to the batch. Under a mesh, map it over the rows with
    `jax.shard_map`: XLA's partitioner cannot split a kernel.

    Args:
        qkv: Queries, keys and values, packed as one projection yields them, or apart, which spares
            cuDNN a copy; head h owns the channels `h * head_dim` to `(h + 1) * head_dim` of each.
        is_valid: True for tokens that may be attended to; None: all. A row without a valid key has
            zero output and gradient.
        num_heads: Divides `width`.
        implementation: "auto" takes the fastest that supports the shape on the device: the Pallas
            kernel on TPUs, cuDNN on NVIDIA GPUs, XLA elsewhere. The others ask for one by name:
            "tpu" runs on a CPU under `pltpu.force_tpu_interpret_mode()`, "hopper", the Pallas
            kernel on Hopper GPUs, under `plgpu.force_gpu_interpret_mode()`. "auto" does not take
            "hopper", which no GPU has measured so far.
        device_kind: `device_kind` of the devices that the program is for; it decides "auto" and the
            TPU kernel's block sizes. None: the kind is read from the mesh of the context or of
            `qkv`. Without a mesh the choice is made when the program is lowered; block sizes are
            then those of this machine's TPU, or v5e's.

    Raises:
        ValueError: shapes or dtypes that do not fit each other, or an unknown `implementation`.
        NotImplementedError: the implementation asked for by name does not support the shape or
            dtype.
    """
    parts = qkv if isinstance(qkv, tuple) else None
    qkv = packed(qkv)
    _check(qkv, is_valid, num_heads, implementation)
    batch, tokens, _, width = qkv.shape
    flat_shape = batch, tokens, 3 * width
    device_kind = device_kind or device_kind_of(qkv)
    tpu_kind = device_kind or local_tpu_kind()

    def on_tpu(qkv: Array, is_valid: Array | None) -> Array:
        return attention_tpu.attention(
            qkv.reshape(flat_shape),
            is_valid,
            num_heads,
            device_kind=tpu_kind,
            is_interpretable=implementation == "tpu",
        )

    def on_nvidia(qkv: Array, is_valid: Array | None) -> Array:
        query, key, value = parts or jnp.unstack(qkv, axis=2)
        return cudnn.attention(query, key, value, is_valid, num_heads)

    def on_any(qkv: Array, is_valid: Array | None) -> Array:
        return reference.attention(qkv, is_valid, num_heads)

    functions = {"tpu": on_tpu, "cudnn": on_nvidia, "xla": on_any}
    unsupported = {
        "tpu": attention_tpu.unsupported_reason(flat_shape, qkv.dtype, num_heads, tpu_kind),
        "cudnn": cudnn.unsupported_reason(qkv.dtype, width // num_heads, device_kind),
        "xla": None,
    }
    if implementation == "hopper":
        # Only here: the import of Pallas for GPUs takes four seconds where it has no bytecode yet.
        from .hopper import call as attention_hopper

        def on_hopper(qkv: Array, is_valid: Array | None) -> Array:
            return attention_hopper.attention(qkv.reshape(flat_shape), is_valid, num_heads)

        functions["hopper"] = on_hopper
        unsupported["hopper"] = attention_hopper.unsupported_reason(
            qkv.dtype, tokens, width // num_heads
        )
    if implementation != "auto":
        if (reason := unsupported[implementation]) is not None:
            raise NotImplementedError(f'{reason}. Use implementation="xla" or "auto".')
        return functions[implementation](qkv, is_valid)
    branches = {"default": on_any}
    if unsupported["tpu"] is None:
        branches["tpu"] = on_tpu
    if unsupported["cudnn"] is None and tokens <= cudnn.MAX_FASTEST_TOKENS:
        branches["cuda"] = on_nvidia
    if device_kind is not None:
        platform = {"TPU": "tpu", "NVIDIA": "cuda"}.get(device_kind.split()[0], "default")
        return branches.get(platform, on_any)(qkv, is_valid)
    if len(branches) == 1:
        return on_any(qkv, is_valid)
    return jax.lax.platform_dependent(qkv, is_valid, **branches)


def packed(qkv: Array | Parts) -> Shaped[Array, "batch tokens 3 width"]:
    """Returns queries, keys and values as one array.

    Raises:
        ValueError: a shape that does not hold three.
    """
    if isinstance(qkv, tuple):
        return jnp.stack(qkv, axis=2)
    if qkv.ndim == 3 and qkv.shape[2] % 3 == 0:
        return qkv.reshape(*qkv.shape[:2], 3, qkv.shape[2] // 3)
    if qkv.ndim == 4 and qkv.shape[2] == 3:
        return qkv
    raise ValueError(
        f"qkv has shape {qkv.shape}; give [batch, tokens, 3, width] or [batch, tokens, 3 * width]."
    )


def _check(qkv: Array, is_valid: Array | None, num_heads: int, implementation: str) -> None:
    if implementation not in (names := get_args(Implementation.__value__)):
        raise ValueError(f"implementation = {implementation!r}; choose {', '.join(names)}.")
    if 0 in qkv.shape:
        raise ValueError(f"qkv has shape {qkv.shape}; every size must be 1 or more.")
    if num_heads < 1 or qkv.shape[3] % num_heads:
        raise ValueError(
            f"num_heads = {num_heads} does not divide the width {qkv.shape[3]} of qkv."
        )
    if not jnp.issubdtype(qkv.dtype, jnp.floating):
        raise ValueError(f"qkv is {qkv.dtype}; cast it to a float.")
    if is_valid is not None and (is_valid.shape != qkv.shape[:2] or is_valid.dtype != jnp.bool):
        raise ValueError(
            f"is_valid is {is_valid.dtype} of shape {is_valid.shape}; "
            f"give bool of shape {qkv.shape[:2]}."
        )
