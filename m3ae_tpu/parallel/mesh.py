"""The mesh of devices and how arrays lie on it."""

import math
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from m3ae_tpu.batch import Source
from m3ae_tpu.errors import require

DATA_AXIS = "data"
"""Mesh axis over which the examples of a batch are spread."""


def make_mesh() -> Mesh:
    """Returns the mesh of all devices of all processes, along the axis `data`."""
    return jax.make_mesh((jax.device_count(),), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def described_mesh(topology: str, num_devices: int) -> Mesh:
    """Returns a mesh of TPUs that libtpu describes: programs compile for it, none runs on it.

    Args:
        topology: Chip and shape, as `v5e:2x2`.
        num_devices: Takes the first so many of its chips.
    """
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    return Mesh(np.array(devices[:num_devices]), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays that every device holds whole, as parameters."""
    return NamedSharding(mesh, PartitionSpec())


def by_example(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: the first axis over the devices."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def require_even_batches(
    sources: Sequence[Source], mesh: Mesh, *, batch_size: int, accumulation_steps: int
) -> None:
    """Checks that the rows of every kind divide over devices and accumulation steps.

    Raises:
        UserError: they do not.
    """
    divisor = mesh.size * accumulation_steps
    rows: dict[str, int] = {}
    for source in sources:
        rows[source.kind] = rows.get(source.kind, 0) + source.rows
    for kind, count in rows.items():
        near = -(-batch_size // divisor) * divisor
        fix = f"--batch_size={near}{' and fitting weights' if len(rows) > 1 else ''}"
        if count % mesh.size == 0:
            steps = math.gcd(count // mesh.size, accumulation_steps)
            fix = f"--optimizer.accumulation_steps={steps}, or {fix}"
        require(
            count % divisor == 0,
            f"batch_size = {batch_size} gives {count} rows of kind {kind!r}, which do not divide "
            f"over {mesh.size} devices x {accumulation_steps} accumulation steps. Set {fix}.",
        )
