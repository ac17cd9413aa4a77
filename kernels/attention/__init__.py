"""Attention of packed queries, keys and values: the public function, and the choice per device."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from . import cudnn, reference
from .implementations import fastest_on_gpu
from .tpu import call as attention_tpu

type Implementation = Literal["auto", "tpu", "gpu", "xla"]


def attention(
    qkv: Float[Array, "batch tokens 3 width"] | Float[Array, "batch tokens three_width"],
    valid: Bool[Array, "batch tokens"] | None,
    num_heads: int,
    *,
    implementation: Implementation = "auto",
) -> Float[Array, "batch tokens width"]:
    """Computes multi-head attention, softmax(query keyᵀ / √head_dim) value, of a row's tokens to
    one another.

    Logits, softmax and sums are float32 or wider; float32 inputs are multiplied without rounding
    them (`Precision.HIGHEST`) by the TPU kernel. The output has the dtype of `qkv`. Differentiable
    in `qkv`. Under a mesh, map it over the rows: see `README.md` beside this file.

    Args:
        qkv: Queries, keys and values as one projection yields them; head h owns the channels
            `h * head_dim` to `(h + 1) * head_dim` of each.
        valid: True for tokens that may be attended to; None: all. A row without a valid key has
            zero output and gradient.
        num_heads: Divides `width`.
        implementation: "auto" takes the TPU kernel where the program is lowered for a TPU and the
            kernel takes the shape; on an NVIDIA GPU what `implementations.json` found fastest;
            "xla" elsewhere. The others ask for one by name: "tpu" runs on a CPU under
            `pltpu.force_tpu_interpret_mode()`, "gpu" is cuDNN.

    Raises:
        ValueError: shapes or dtypes that do not fit each other, or an unknown `implementation`.
        NotImplementedError: the implementation asked for by name does not take this shape or dtype.
    """
    qkv = _packed(qkv)
    _check(qkv, valid, num_heads, implementation)
    if implementation == "xla":
        return reference.attention(qkv, valid, num_heads)
    batch, tokens, _, width = qkv.shape
    head_dim = width // num_heads

    def on_tpu(qkv: Array, valid: Array | None) -> Array:
        return attention_tpu.attention(qkv.reshape(batch, tokens, 3 * width), valid, num_heads)

    def on_gpu(qkv: Array, valid: Array | None) -> Array:
        return cudnn.attention(qkv, valid, num_heads)

    def elsewhere(qkv: Array, valid: Array | None) -> Array:
        return reference.attention(qkv, valid, num_heads)

    kernels = {"tpu": on_tpu, "gpu": on_gpu}
    reasons = {
        "tpu": attention_tpu.unsupported_reason((batch, tokens, 3 * width), qkv.dtype, num_heads),
        "gpu": cudnn.unsupported_reason(qkv.dtype, head_dim),
    }
    if implementation != "auto":
        if (reason := reasons[implementation]) is not None:
            raise NotImplementedError(f'{reason}. Use implementation="xla" or "auto".')
        return kernels[implementation](qkv, valid)
    choice = {"default": elsewhere}
    if (
        reasons["tpu"] is None and not attention_tpu.interprets()
    ):  # Interpreted is what was asked for by name.
        choice["tpu"] = on_tpu
    if reasons["gpu"] is None:
        kind = jax.devices()[0].device_kind
        if fastest_on_gpu(kind, tokens, masked=valid is not None) == "gpu":
            choice["cuda"] = on_gpu
    if len(choice) == 1:
        return elsewhere(qkv, valid)
    return jax.lax.platform_dependent(qkv, valid, **choice)


def _packed(qkv: Array) -> Array:
    """Returns `qkv` as [batch, tokens, 3, width]."""
    if qkv.ndim == 3 and qkv.shape[2] % 3 == 0:
        return qkv.reshape(*qkv.shape[:2], 3, qkv.shape[2] // 3)
    if qkv.ndim == 4 and qkv.shape[2] == 3:
        return qkv
    raise ValueError(
        f"qkv has shape {qkv.shape}; give [batch, tokens, 3, width] or [batch, tokens, 3 * width]."
    )


def _check(qkv: Array, valid: Array | None, num_heads: int, implementation: str) -> None:
    if implementation not in (names := get_args(Implementation.__value__)):
        raise ValueError(f"implementation = {implementation!r}; choose {', '.join(names)}.")
    if 0 in qkv.shape:
        raise ValueError(f"qkv has shape {qkv.shape}, which holds nothing.")
    if num_heads < 1 or qkv.shape[3] % num_heads:
        raise ValueError(
            f"num_heads = {num_heads} does not divide the width {qkv.shape[3]} of qkv."
        )
    if not jnp.issubdtype(qkv.dtype, jnp.floating):
        raise ValueError(f"qkv is {qkv.dtype}; cast it to a float.")
    if valid is not None and (valid.shape != qkv.shape[:2] or valid.dtype != jnp.bool):
        raise ValueError(
            f"valid is {valid.dtype} of shape {valid.shape}; give bool of shape {qkv.shape[:2]}."
        )
