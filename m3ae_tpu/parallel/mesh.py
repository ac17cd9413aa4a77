"""The mesh of devices and how arrays lie on it."""

import functools
import math

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.data.mixture import rows_per_source
from m3ae_tpu.errors import require
from m3ae_tpu.kernels.attention import attention, reference
from m3ae_tpu.kernels.cross_entropy import cross_entropy
from m3ae_tpu.kernels.cross_entropy.reference import CrossEntropy
from m3ae_tpu.model.losses import CrossEntropyFunction
from m3ae_tpu.model.transformer import AttentionFunction

DATA_AXIS = "data"
"""Mesh axis over which the examples of a batch are spread."""


def make_mesh() -> Mesh:
    """Returns the mesh of all devices of all processes, along the axis `data`."""
    return jax.make_mesh((jax.device_count(),), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what every device holds whole: parameters, optimizer state, metrics."""
    return NamedSharding(mesh, PartitionSpec())


def by_example(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: the first axis over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


@functools.cache
def attention_on(mesh: Mesh) -> AttentionFunction:
    """Returns attention for batches that lie on a mesh: every device runs its kernel on its own
    rows.

    The same function for the same mesh, as a model carries it and is compiled for it.
    """
    if mesh.devices.flat[0].platform == "cpu":
        return reference.attention
    rows = PartitionSpec(DATA_AXIS)

    def mapped(qkv, valid, num_heads):
        own_rows = functools.partial(attention, num_heads=num_heads)
        # check_vma: kernels do not say over which axes their results vary.
        return jax.shard_map(own_rows, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)(
            qkv, valid
        )

    return mapped


@functools.cache
def cross_entropy_on(mesh: Mesh) -> CrossEntropyFunction:
    """Returns the text head's cross-entropy for batches that lie on a mesh: every device computes
    its own rows.

    The same function for the same mesh, as a model carries it and is compiled for it.
    """
    rows, whole = PartitionSpec(DATA_AXIS), PartitionSpec()

    def mapped(x, kernel, bias, ids, counts) -> CrossEntropy:
        # check_vma: kernels do not say over which axes their results vary.
        own_rows = jax.shard_map(
            cross_entropy,
            mesh=mesh,
            in_specs=(rows, whole, whole, rows, rows),
            out_specs=rows,
            check_vma=False,
        )
        # Cast before, so that devices add up gradients in the dtype of all others.
        return own_rows(x, kernel.astype(x.dtype), bias, ids, counts)

    return cross_entropy if mesh.size == 1 else mapped


def require_even_batches(config: PretrainConfig, mesh: Mesh) -> None:
    """Checks that the rows of every kind divide over the devices and the parts of an accumulated
    batch.

    Raises:
        UserError: they do not.
    """
    parts = mesh.size * config.optimizer.accumulation_steps
    rows: dict[str, int] = {}
    for source, count in zip(config.data.sources, rows_per_source(config), strict=True):
        rows[source.kind] = rows.get(source.kind, 0) + count
    for kind, count in rows.items():
        near = -(-config.batch_size // parts) * parts
        fix = f"--batch_size={near}{' and fitting weights' if len(rows) > 1 else ''}"
        if count % mesh.size == 0:
            fix = f"--optimizer.accumulation_steps={math.gcd(count // mesh.size, parts // mesh.size)}, or {fix}"
        require(
            count % parts == 0,
            f"batch_size = {config.batch_size} gives {count} rows of kind {kind!r}, which do not divide over "
            f"{mesh.size} devices x {config.optimizer.accumulation_steps} accumulation steps. "
            f"Set {fix}.",
        )
