"""The state of a run and one optimizer step of it, as pure functions of any model and loss."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int, Key, PyTree

from m3ae_tpu import scopes
from m3ae_tpu.parallel.forms import forms_of
from m3ae_tpu.parallel.mesh import by_example, replicated

# Streams of random numbers that one seed feeds; data order has its own, in `data/rows.py`.
_MODEL_STREAM, _STEP_STREAM = 0, 1


class Metrics(NamedTuple):
    """Scalars of one step, by name."""

    means: dict[str, Array]
    """Means over rows; the mean over an accumulated batch's micro-batches is that of the batch."""
    counts: dict[str, Array]
    """int32; added up over micro-batches."""


type Loss[Model] = Callable[
    [Model, Any, dict[Any, Int[Array, " rows"]], Key[Array, ""]], tuple[Array, Metrics]
]
"""Computes a scalar and metrics from a model, a batch (arrays by kind of rows), the place of each
kind's rows in the global batch, and the step's key. A mean over rows, so that it accumulates."""


class TrainState(eqx.Module):
    """All arrays that a checkpoint must hold to go on bit for bit."""

    step: Int[Array, ""]
    """int32, finished steps."""
    model: PyTree
    optimizer_state: PyTree


def model_key(seed: int) -> Key[Array, ""]:
    """Returns the key of a run's initial model."""
    return jax.random.fold_in(jax.random.key(seed), _MODEL_STREAM)


def steps_key(seed: int) -> Key[Array, ""]:
    """Returns the key that all steps of a run share: `train_step` folds the step's number in."""
    return jax.random.fold_in(jax.random.key(seed), _STEP_STREAM)


def init_state(model: PyTree, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns the state before the first step."""
    parameters = eqx.filter(model, eqx.is_array)
    return TrainState(jnp.zeros((), jnp.int32), model, optimizer.init(parameters))


def train_step(
    state: TrainState,
    batch: Any,
    *,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    key: Key[Array, ""],
    accumulation_steps: int = 1,
    shardings: PyTree | None = None,
) -> tuple[TrainState, Metrics]:
    """Takes one optimizer step on a global batch.

    Args:
        state: Before the step; may be donated.
        batch: By kind of rows, a tree of arrays that share their first axis; over all devices.
        loss: Differentiated with respect to the model.
        optimizer: Whose state the train state holds.
        key: The key that the run's steps share, see `steps_key`; the step's number is folded in.
        accumulation_steps: Micro-batches that the batch is computed in, one after the other, for
            less memory; the mean of their gradients is applied: the same update to rounding.
        shardings: Places of the model's arrays, and so of their gradients; None leaves the latter
            to the compiler.

    Returns:
        The state after the step, and the loss's metrics with three more means: `loss`; `grad_norm`,
        the gradient's global norm before any clip; `parameter_norm`, that of the new parameters.
    """
    key = jax.random.fold_in(key, state.step)
    rows = {kind: jnp.arange(jax.tree.leaves(arrays)[0].shape[0]) for kind, arrays in batch.items()}

    def gradient(model: PyTree, *arguments: Any) -> tuple[tuple[Array, Metrics], PyTree]:
        value_and_metrics, gradients = jax.value_and_grad(loss, has_aux=True)(model, *arguments)
        if shardings is not None:
            gradients = jax.lax.with_sharding_constraint(gradients, shardings)
        return value_and_metrics, gradients

    if accumulation_steps == 1:
        value_and_metrics, gradients = gradient(state.model, batch, rows, key)
    else:
        value_and_metrics, gradients = _accumulate(
            functools.partial(gradient, state.model), (batch, rows), key, accumulation_steps
        )
    value, metrics = value_and_metrics
    parameters = eqx.filter(state.model, eqx.is_array)
    # Optax raises floats to the power of an int32 count.
    with jax.named_scope(scopes.OPTIMIZER), jax.numpy_dtype_promotion("standard"):
        updates, optimizer_state = optimizer.update(gradients, state.optimizer_state, parameters)
        model = eqx.apply_updates(state.model, updates)
        more = {
            "loss": value,
            "grad_norm": optax.tree.norm(gradients),
            "parameter_norm": optax.tree.norm(eqx.filter(model, eqx.is_array)),
        }
    metrics = Metrics(metrics.means | more, metrics.counts)
    return TrainState(state.step + 1, model, optimizer_state), metrics


def _accumulate(
    gradient: Callable, batch_and_rows: PyTree, key: Key[Array, ""], num_micro_batches: int
) -> tuple[tuple[Array, Metrics], PyTree]:
    """Computes `gradient` of the whole batch from equal micro-batches, one after the other."""

    # Row r goes to micro-batch r % n, so that each of them lies on all devices.
    def split(leaf: Array) -> Array:
        return leaf.reshape(-1, num_micro_batches, *leaf.shape[1:]).swapaxes(0, 1)

    def add(total: PyTree, micro_batch: PyTree) -> tuple[PyTree, None]:
        return jax.tree.map(jnp.add, total, gradient(*micro_batch, key)), None

    stacked = jax.tree.map(split, batch_and_rows)
    first = jax.tree.map(lambda leaf: leaf[0], stacked)
    shapes = jax.eval_shape(lambda: gradient(*first, key))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    ((value, metrics), gradients), _ = jax.lax.scan(add, zeros, stacked)
    value, means, gradients = jax.tree.map(
        lambda leaf: leaf / num_micro_batches, (value, metrics.means, gradients)
    )
    return (value, Metrics(means, metrics.counts)), gradients


def compile_step(
    mesh: Mesh,
    shardings: TrainState,
    *,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    key: Key[Array, ""],
    accumulation_steps: int = 1,
) -> Any:
    """Returns `train_step` jitted for a mesh: state donated, rows over the devices.

    Args:
        mesh: The devices.
        shardings: Places of the state's arrays, see `parallel.rules.state_shardings`.
        loss: As for `train_step`.
        optimizer: As for `train_step`.
        key: As for `train_step`.
        accumulation_steps: As for `train_step`.
    """
    step = functools.partial(
        train_step,
        loss=loss,
        optimizer=optimizer,
        key=key,
        accumulation_steps=accumulation_steps,
        shardings=shardings.model,
    )
    return jax.jit(
        step,
        in_shardings=(shardings, by_example(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
        compiler_options=dict(forms_of(mesh.devices.flat[0].platform).compiler_options) or None,
    )
