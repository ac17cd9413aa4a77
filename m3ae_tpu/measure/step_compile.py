"""The train step compiled for a mesh of TPUs that is not here."""

import math
import re
from typing import Literal

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from m3ae_tpu.config import Kind, PretrainConfig
from m3ae_tpu.data.mixture import rows_per_source
from m3ae_tpu.measure import tpu_schedule
from m3ae_tpu.parallel.mesh import DATA_AXIS, attention_on, cross_entropy_on
from m3ae_tpu.train.loop import compile_step
from m3ae_tpu.train.step import TrainState, init_state

type Kernels = Literal["ours", "xla"]


def described_mesh(topology: str, num_devices: int) -> Mesh:
    """Returns a mesh of TPUs that are described to the compiler, `v5e:2x2` for example; nothing can
    run on it.
    """
    tpu_schedule.prepare(replay=False)
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    return Mesh(np.array(devices[:num_devices]), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def compile_for(mesh: Mesh, config: PretrainConfig, kernels: Kernels) -> jax.stages.Compiled:
    """Compiles the config's train step for a mesh, with our kernels or as XLA computes it."""

    def state() -> TrainState:
        if kernels == "ours":
            return init_state(config, attention_on(mesh), cross_entropy_on(mesh))
        return init_state(config)

    with tpu_schedule.not_kept():
        return (
            compile_step(config, mesh).lower(jax.eval_shape(state), batch_shapes(config)).compile()
        )


def batch_shapes(config: PretrainConfig) -> dict[Kind, dict[str, jax.ShapeDtypeStruct]]:
    """Returns the shapes of a batch, as `data/records.py` describes it."""
    size = config.data.image_size
    batch: dict[Kind, dict[str, jax.ShapeDtypeStruct]] = {}
    for source, rows in zip(config.data.sources, rows_per_source(config), strict=True):
        arrays = {}
        if source.kind != "text":
            arrays["image"] = jax.ShapeDtypeStruct((rows, size, size, 3), np.uint8)
            arrays["flip"] = jax.ShapeDtypeStruct((rows,), np.bool)
        if source.kind != "image":
            arrays["text"] = jax.ShapeDtypeStruct((rows, source.text_length), np.int32)
            arrays["text_valid"] = jax.ShapeDtypeStruct((rows, source.text_length), np.bool)
        batch[source.kind] = arrays
    return batch


def collectives(text: str) -> list[str]:
    """Returns kind, dtype and size of every array that a compiled program's devices exchange,
    sorted.
    """
    found = re.findall(
        r"= (\S+|\(.*?\)) (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\(",
        text,
    )
    # Several arrays may go in one operation, in an order and in forms that the compiler chooses.
    arrays = (
        (kind, *array) for shape, kind in found for array in re.findall(r"(\w+)\[([\d,]*)\]", shape)
    )
    return sorted(
        f"{kind} {dtype}[{math.prod(map(int, filter(None, sizes.split(','))))}]"
        for kind, dtype, sizes in arrays
    )
