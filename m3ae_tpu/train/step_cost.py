"""What a whole train step costs on a TPU that is not here, as its compiler lays it out: time, traffic, memory, by part."""

import dataclasses
import re
from typing import Literal

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.data.mixture import rows_per_source
from m3ae_tpu.kernels import scheduled_cost
from m3ae_tpu.sharding import DATA_AXIS, attention_on, cross_entropy_on
from m3ae_tpu.train.loop import compile_step
from m3ae_tpu.train.objective import Batch
from m3ae_tpu.train.step import init_state

type Kernels = Literal["ours", "xla"]

PARTS = {
    "attention": r"/attention/|attention_(for|back)ward",
    "norms": r"/norm/",
    "MLP": r"/mlp/",
    "attention's projections": r"(encoder|decoder)\)*/",
    "vocabulary head": r"text_loss",
    "image head, patches, loss": r"image_loss",
    "masks, gathers, embeddings": r"embed|select|gather|sort",
    "optimizer": r"optimizer",
}
"""Parts of a step, and what is in the names of their operations; the first that fits counts."""


@dataclasses.dataclass
class PartCost:
    """Of one part in one step, on one chip."""

    matmul_flops: float = 0.0
    hbm_bytes: float = 0.0
    operations: int = 0


def described_mesh(topology: str, num_devices: int) -> Mesh:
    """Returns a mesh of TPUs that are described to the compiler, `v5e:2x2` for example; nothing can run on it."""
    scheduled_cost.prepare(replay=False)
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    return Mesh(np.array(devices[:num_devices]), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def compile_for(mesh: Mesh, config: PretrainConfig, kernels: Kernels) -> jax.stages.Compiled:
    """Compiles the config's train step for a mesh, with our kernels or as XLA computes it."""
    functions = (attention_on(mesh), cross_entropy_on(mesh)) if kernels == "ours" else ()
    state = jax.eval_shape(lambda: init_state(config, *functions))
    with scheduled_cost.not_kept():
        return compile_step(config, mesh).lower(state, batch_shapes(config)).compile()


def batch_shapes(config: PretrainConfig) -> Batch:
    """Returns the shapes of a batch, as `data/records.py` describes it."""
    size, batch = config.data.image_size, {}
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


def part_of(source: str) -> str:
    """Returns the part that an operation belongs to, by the name that JAX gave it."""
    return next((part for part, pattern in PARTS.items() if re.search(pattern, source)), "other")


def collectives(text: str) -> list[str]:
    """Returns kind and shape of every collective of a compiled program, sorted."""
    found = re.findall(
        r"= (\S+|\(.*?\)) (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(?:-start)?\(",
        text,
    )
    return sorted(f"{kind} {re.sub(r'{[^}]*}', '', shape)}" for shape, kind in found)
