"""Projection to a vocabulary fused with cross-entropy: the public function, and the choice per
device.
"""

import functools
from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..dispatch import device_kind_of, local_tpu_kind
from . import chunked, columns, reference, tpu
from .reference import CrossEntropy

type Implementation = Literal["auto", "tpu", "chunked", "xla"]

_CACHE_LOGITS = 2**18
"""Logits at a time on a CPU: one megabyte of float32, which fits its cache."""
_DEVICE_LOGITS = 2**25
"""Logits at a time elsewhere: enough to fill matrix units."""


def cross_entropy(
    x: Float[Array, "batch tokens width"],
    kernel: Float[Array, "width vocab"],
    bias: Float[Array, " vocab"],
    ids: Int[Array, "batch tokens"],
    is_counted: Bool[Array, "batch tokens"],
    *,
    implementation: Implementation = "auto",
    vocabulary_axis: str | None = None,
) -> CrossEntropy:
    """Projects tokens to a vocabulary and averages their cross-entropy with the true ids by row.

    Logits are float32 or wider, and never held for all tokens at once. Differentiable in `x`,
    `kernel` and `bias`. Tokens that are not counted cost no time. Under a mesh, map it over the
    rows with `jax.shard_map`.

    Args:
        x: Hidden tokens; multiplied in their own dtype, to which `kernel` is cast.
        kernel: Column v yields the logit of id v.
        bias: Added to the logits.
        ids: int32, true ids, below `vocab`.
        is_counted: True for tokens that enter their row's average; the others have no effect and no
            gradient.
        implementation: "auto" takes the Pallas kernel where the program is lowered for a TPU and
            the kernel supports the shape, and "chunked" elsewhere. "xla" holds all logits. "tpu"
            runs on a CPU under `pltpu.force_tpu_interpret_mode()`.
        vocabulary_axis: Mesh axis over which the vocabulary is cut, in a `jax.shard_map`: each
            device has its columns of `kernel` and `bias`, and all have the same tokens. "xla" does
            not support it.

    Raises:
        ValueError: shapes or dtypes that do not fit each other, or an unknown `implementation`.
        NotImplementedError: the implementation asked for by name does not support the shape or
            dtype.
    """
    _check(x, kernel, bias, ids, is_counted, implementation)
    if implementation == "xla":
        return reference.cross_entropy(x, kernel, bias, ids, is_counted)
    rows = x.reshape(-1, x.shape[2])
    order = jnp.argsort(~is_counted.reshape(-1))  # Counted tokens come first.
    inverse = jnp.argsort(order)
    vocab = kernel.shape[1]
    device_kind = device_kind_of(x) or local_tpu_kind()
    choose = functools.partial(_choose, implementation, rows.shape, x.dtype, vocab)
    scores = choose(vocabulary_axis, device_kind)(
        _permute(rows, order, inverse),
        kernel,
        bias,
        columns.own_ids(ids.reshape(-1)[order], vocab, vocabulary_axis),
        is_counted.sum(dtype=jnp.int32),
    )
    nll, is_right = (_permute(score, inverse, order).reshape(ids.shape) for score in scores)
    return reference.mean_by_row(nll, is_right, is_counted)


def _choose(
    implementation: str,
    shape: tuple[int, ...],
    dtype: jnp.dtype,
    vocab: int,
    axis: str | None,
    device_kind: str | None,
) -> Callable:
    """Returns the function that computes the cross-entropy of each token, counted ones first."""
    reason = tpu.unsupported_reason(shape[0], shape[1], dtype, device_kind)
    if implementation == "tpu":
        if reason is not None:
            raise NotImplementedError(f'{reason}. Use implementation="chunked" or "auto".')
        return functools.partial(tpu.token_scores, vocabulary_axis=axis, device_kind=device_kind)

    def in_chunks(logits: int) -> Callable:
        chunk = max(8, logits // vocab // 8 * 8)
        return functools.partial(chunked.token_scores, chunk=chunk, vocabulary_axis=axis)

    branches = {"cpu": in_chunks(_CACHE_LOGITS), "default": in_chunks(_DEVICE_LOGITS)}
    if implementation == "auto" and reason is None:
        branches["tpu"] = functools.partial(
            tpu.token_scores,
            is_interpretable=False,
            vocabulary_axis=axis,
            device_kind=device_kind,
        )
    return functools.partial(jax.lax.platform_dependent, **branches)


@jax.custom_vjp
def _permute(x: Array, order: Array, inverse: Array) -> Array:
    """Returns x[order]. With the inverse permutation its gradient is a gather, not a scatter."""
    return x[order]


_permute.defvjp(
    lambda x, order, inverse: (x[order], inverse),
    lambda inverse, dx: (dx[inverse], None, None),
)


def _check(x, kernel, bias, ids, is_counted, implementation: str) -> None:
    if implementation not in (names := get_args(Implementation.__value__)):
        raise ValueError(f"implementation = {implementation!r}; choose {', '.join(names)}.")
    if x.ndim != 3 or 0 in (x.shape[0], x.shape[2]):
        raise ValueError(
            f"x has shape {x.shape}; give [batch, tokens, width], batch and width 1 or more."
        )
    if kernel.ndim != 2 or kernel.shape[0] != x.shape[2] or bias.shape != kernel.shape[1:]:
        raise ValueError(
            f"kernel has shape {kernel.shape}, bias {bias.shape}; "
            f"give [width, vocab] and [vocab] with width = {x.shape[2]}."
        )
    for name, array, kind in (("ids", ids, jnp.integer), ("is_counted", is_counted, jnp.bool)):
        if array.shape != x.shape[:2] or not jnp.issubdtype(array.dtype, kind):
            raise ValueError(
                f"{name} is {array.dtype} of shape {array.shape}; "
                f"give {kind.__name__} of shape {x.shape[:2]}."
            )
