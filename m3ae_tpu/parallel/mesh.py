"""The mesh of devices and how a batch lies on it."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils, topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from m3ae_tpu.batch import Source
from m3ae_tpu.config import MeshConfig
from m3ae_tpu.errors import require

DATA, FSDP, TENSOR = AXES = ("data", "fsdp", "tensor")
"""Axes of a mesh, see `MeshConfig`; the devices of `tensor` are the nearest neighbours."""

BATCH = (DATA, FSDP)
"""Axes over which the examples of a batch are spread."""

DATA_PARALLEL = MeshConfig()


def make_mesh(config: MeshConfig = DATA_PARALLEL, devices: Sequence[Any] | None = None) -> Mesh:
    """Returns the mesh of all devices of all processes, or of the ones given.

    Raises:
        UserError: the sizes do not fit the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    return _mesh(_device_grid(devices, filled(config, len(devices), num_slices(devices))))


def described_mesh(
    topology: str,
    num_devices: int | None = None,
    config: MeshConfig = DATA_PARALLEL,
    *,
    slices: int = 1,
) -> Mesh:
    """Returns a mesh of TPUs that libtpu describes: programs compile for it, none runs on it.

    Args:
        topology: Chip and shape of a slice, as `v5e:2x2`.
        num_devices: Takes the first so many of its chips; None: all.
        config: The sizes of the axes.
        slices: Equal slices, joined by the network of their data center.

    Raises:
        UserError: the sizes do not fit the number of devices.
    """
    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if topology.startswith("v4:"):  # Otherwise libtpu describes each chip as two devices.
        options["chip_config_name"] = "megacore"
    devices = topologies.get_topology_desc(
        platform="tpu", topology_name=topology, **options
    ).devices
    if num_devices is None or num_devices == len(devices):
        return make_mesh(config, devices)
    # A part of a slice has no shape that axes could follow.
    shape = filled(config, num_devices)
    return _mesh(np.array(devices[:num_devices]).reshape(sizes(shape)))


def filled(config: MeshConfig, num_devices: int, slices: int = 1) -> MeshConfig:
    """Returns the config with the size that its -1 stands for.

    Raises:
        UserError: the sizes do not fit the number of devices, or `data` that of the slices.
    """
    named = {name: size for name, size in zip(AXES, sizes(config), strict=True) if size != -1}
    product = math.prod(named.values())
    text = " x ".join(f"mesh.{name} = {size}" for name, size in named.items())
    fix = "Set sizes whose product is that number"
    if len(named) == len(AXES):
        require(
            product == num_devices,
            f"{text} is {product}, and there are {num_devices} devices. {fix}, or --mesh.data=-1.",
        )
    else:
        require(
            num_devices % product == 0,
            f"{text} does not divide the {num_devices} devices. {fix}, or a divisor of it.",
        )
        left = next(name for name in AXES if name not in named)
        config = dataclasses.replace(config, **{left: num_devices // product})
    require(
        config.data % slices == 0,
        f"mesh.data = {config.data} does not divide over {slices} slices, and no other axis "
        f"may cross them. Set --mesh.fsdp and --mesh.tensor to fit a slice of "
        f"{num_devices // slices} devices.",
    )
    return config


def sizes(config: MeshConfig) -> tuple[int, int, int]:
    """Returns the sizes of the axes, in the order of `AXES`."""
    return config.data, config.fsdp, config.tensor


def num_slices(devices: Sequence[Any]) -> int:
    """Returns how many slices the devices lie on; those of one are joined by fast links."""
    return len({getattr(device, "slice_index", 0) for device in devices})


def num_batch_shards(mesh: Mesh) -> int:
    """Returns in how many parts a batch lies on the mesh."""
    return mesh.shape[DATA] * mesh.shape[FSDP]


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays that every device holds whole, as metrics."""
    return NamedSharding(mesh, PartitionSpec())


def by_example(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: the first axis over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def require_even_batches(
    sources: Sequence[Source], mesh: Mesh, *, batch_size: int, accumulation_steps: int
) -> None:
    """Checks that the rows of every kind divide over devices and accumulation steps.

    Raises:
        UserError: they do not.
    """
    shards = num_batch_shards(mesh)
    divisor = shards * accumulation_steps
    rows: dict[str, int] = {}
    for source in sources:
        rows[source.kind] = rows.get(source.kind, 0) + source.rows
    for kind, count in rows.items():
        near = -(-batch_size // divisor) * divisor
        fix = f"--batch_size={near}{' and fitting weights' if len(rows) > 1 else ''}"
        if count % shards == 0:
            steps = math.gcd(count // shards, accumulation_steps)
            fix = f"--optimizer.accumulation_steps={steps}, or {fix}"
        require(
            count % divisor == 0,
            f"batch_size = {batch_size} gives {count} rows of kind {kind!r}, which do not divide "
            f"over {shards} devices x {accumulation_steps} accumulation steps. Set {fix}.",
        )


def _device_grid(devices: Sequence[Any], config: MeshConfig) -> np.ndarray:
    """Returns the devices in the shape of the config: neighbours on the mesh are linked."""
    shape, slices = sizes(config), num_slices(devices)
    if slices == 1:
        return mesh_utils.create_device_mesh(shape, list(devices), allow_split_physical_axes=True)
    in_slice = (config.data // slices, config.fsdp, config.tensor)
    return mesh_utils.create_hybrid_device_mesh(
        in_slice, (slices, 1, 1), list(devices), allow_split_physical_axes=True
    )


def _mesh(grid: np.ndarray) -> Mesh:
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))
