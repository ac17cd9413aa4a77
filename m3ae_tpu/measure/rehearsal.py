"""Ahead-of-time compilation of a config's train step, also for TPUs that are only described."""

from typing import Any

import jax
from jax.sharding import Mesh

from m3ae_tpu.batch import Batch, batch_shapes, mixture
from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.measure import tpu_schedule
from m3ae_tpu.parallel.operations import Operations
from m3ae_tpu.train.pretraining import pretraining
from m3ae_tpu.train.program import make_program

type Kernels = str
"""A step by name: "ours", "xla" for the one without kernels, or `WITHOUT` and the name of a form of
`parallel.forms` for ours without it.
"""

WITHOUT = "without "


def compile_for(mesh: Mesh, config: PretrainConfig, kernels: Kernels) -> jax.stages.Compiled:
    """Compiles a config's train step for a mesh.

    Args:
        mesh: A mesh of devices here, or from `parallel.mesh.described_mesh`.
        config: `batch_size` rows over all of its devices.
        kernels: Which step.
    """
    init, step = step_functions(mesh, config, kernels)
    with tpu_schedule.not_kept():
        return step.lower(jax.eval_shape(init), config_batch_shapes(config)).compile()


def step_functions(mesh: Mesh, config: PretrainConfig, kernels: Kernels) -> tuple[Any, Any]:
    """Returns a config's jitted functions: one that makes the initial state, and a train step."""
    operations = None
    if kernels == "xla":
        operations = Operations()
    elif kernels.startswith(WITHOUT):
        left_out = kernels.removeprefix(WITHOUT)
        operations = Operations(mesh, config.mesh.gradient_sums, without=(left_out,))
    program = make_program(config, pretraining(config), mesh, operations)
    return program.init, program.step


def config_batch_shapes(config: PretrainConfig) -> Batch:
    """Returns the shapes of a config's global batch."""
    return batch_shapes(mixture(config.data, config.batch_size), config.data.image_size)
