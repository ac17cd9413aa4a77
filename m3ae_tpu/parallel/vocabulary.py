"""Words where a mesh cuts their vocabulary: their loss, and the lookup of their vectors."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from m3ae_tpu.kernels import cross_entropy as kernels
from m3ae_tpu.kernels.cross_entropy import CrossEntropy
from m3ae_tpu.parallel.mesh import FSDP, TENSOR


def cross_entropy(
    x: Float[Array, "batch tokens width"],
    kernel: Float[Array, "..."],
    *arrays: Array,
    gathered_axis: int | None,
    vocabulary_axis: str | None,
) -> CrossEntropy:
    """Computes the cross-entropy of a device's rows; the kernel is gathered over `fsdp`.

    The gradient of a gather adds up and scatters at once: each device gets its share of it alone.

    Args:
        x: As for `kernels.cross_entropy.cross_entropy`.
        kernel: The device's part.
        *arrays: Bias, ids and what is counted, as for `kernels.cross_entropy.cross_entropy`.
        gathered_axis: Axis of the kernel that `fsdp` cuts; None: none.
        vocabulary_axis: Mesh axis that cuts the vocabulary; None: none.
    """
    if gathered_axis is not None:
        kernel = jax.lax.all_gather(kernel, FSDP, axis=gathered_axis, tiled=True)
    return kernels.cross_entropy(x, kernel, *arrays, vocabulary_axis=vocabulary_axis)


def lookup(
    table: Float[Array, "words channels"],
    ids: Int[Array, "batch tokens"],
    *,
    dtype: DTypeLike,
    vocabulary_axes: tuple[str, ...],
    gathers_width: bool,
) -> Float[Array, "batch tokens width"]:
    """Computes table[ids] for a device's rows, as Megatron's embedding does where it is cut.

    Each device finds those of the words that are its own, and all add up what they found, of which
    one is not zero. Devices of `fsdp` have rows of their own: they look up those of all of them,
    and each gets the sum of its rows alone.

    Args:
        table: The device's part.
        ids: The device's rows.
        dtype: Dtype in which vectors travel, and of the result.
        vocabulary_axes: Mesh axes that cut the vocabulary.
        gathers_width: `fsdp` cuts the channels instead.
    """
    if gathers_width:  # The vocabulary does not divide.
        table = jax.lax.all_gather(table, FSDP, axis=1, tiled=True)
    if not vocabulary_axes:
        return table[ids].astype(dtype)
    if FSDP in vocabulary_axes:
        ids = jax.lax.all_gather(ids, FSDP, axis=0, tiled=True)
    places = ids - jax.lax.axis_index(vocabulary_axes).astype(ids.dtype) * table.shape[0]
    is_own = ((places >= 0) & (places < table.shape[0]))[:, :, None]
    vectors: Any = jnp.where(is_own, table[places].astype(dtype), jnp.zeros((), dtype))
    if FSDP in vocabulary_axes:
        vectors = jax.lax.psum_scatter(vectors, FSDP, scatter_dimension=0, tiled=True)
    return _sum(vectors, TENSOR) if TENSOR in vocabulary_axes else vectors


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _sum(x: Array, axis: str) -> Array:
    """Computes `psum` of values of which all devices of the axis go on with the sum alike.

    Each then has its share of the same cotangent, so that none is exchanged.
    """
    return jax.lax.psum(x, axis)


_sum.defvjp(
    lambda x, axis: (jax.lax.psum(x, axis), None),
    lambda axis, _, share: (share * jnp.asarray(jax.lax.axis_size(axis), share.dtype),),
)
