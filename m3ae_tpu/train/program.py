"""The program of a run on a mesh: what makes its first state, and its compiled step.

Training, the replay of a step and rehearsals all take it from here, so it is the same.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from jax.sharding import Mesh

from m3ae_tpu.config import RunConfig
from m3ae_tpu.parallel.operations import Operations
from m3ae_tpu.parallel.rules import placed, state_shardings
from m3ae_tpu.train.objective import Objective
from m3ae_tpu.train.optimizer import make_optimizer
from m3ae_tpu.train.step import TrainState, compile_step, init_state, steps_key


class Program(NamedTuple):
    """Functions of a run, jitted for its mesh."""

    init: Callable[[], TrainState]
    """Makes the state before the first step, in its shardings."""
    step: Any
    """Takes a state, which it may reuse, and a batch; see `train.step.train_step`."""
    abstract: TrainState
    """Shapes, dtypes and shardings of the state."""
    schedule: optax.Schedule
    """Learning rate by the number of the update."""


def make_program(
    config: RunConfig, objective: Objective, mesh: Mesh, operations: Operations | None = None
) -> Program:
    """Returns the program of a run.

    Args:
        config: The run's settings.
        objective: The model and its loss.
        mesh: The devices.
        operations: Those that the model computes through; None: the mesh's own.
    """
    optimizer, schedule = make_optimizer(
        config.optimizer, batch_size=config.batch_size, num_steps=config.num_steps
    )
    of_mesh = operations or Operations(mesh, config.mesh.gradient_sums)

    def init() -> TrainState:
        return init_state(objective.init_model(of_mesh), optimizer)

    abstract = jax.eval_shape(init)
    shardings = state_shardings(abstract, mesh)
    step = compile_step(
        mesh,
        shardings,
        loss=objective.loss,
        optimizer=optimizer,
        key=steps_key(config.seed),
        accumulation_steps=config.optimizer.accumulation_steps,
    )
    return Program(
        jax.jit(init, out_shardings=shardings), step, placed(abstract, shardings), schedule
    )
