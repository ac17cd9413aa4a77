"""The program of a run on a mesh: what makes its first state, and its compiled step.

Training, the replay of a step and rehearsals all take it from here, so it is the same.
"""

import functools
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
    if objective.after_optimizer is not None:
        optimizer = optax.chain(optimizer, objective.after_optimizer)
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
    first = jax.jit(init, out_shardings=shardings)
    if objective.with_weights is not None:
        first = functools.partial(_init_with_weights, objective, of_mesh, optimizer, shardings)
    return Program(first, step, placed(abstract, shardings), schedule)


def _init_with_weights(
    objective: Objective,
    operations: Operations,
    optimizer: optax.GradientTransformation,
    shardings: TrainState,
) -> TrainState:
    """Makes the state before the first step, with weights from elsewhere.

    They are arguments of a program, as constants of one they would be compiled.
    """
    assert objective.with_weights is not None
    draw = functools.partial(objective.init_model, operations)
    model = objective.with_weights(jax.jit(draw, out_shardings=shardings.model)())
    init = functools.partial(init_state, optimizer=optimizer)
    return jax.jit(init, out_shardings=shardings)(model)
