"""The state of a run and one step of it, as pure functions."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int, Key, PyTree

from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.kernels.attention import reference
from m3ae_tpu.kernels.cross_entropy import reference as ce_reference
from m3ae_tpu.model.losses import CrossEntropyFunction
from m3ae_tpu.model.m3ae import M3AE
from m3ae_tpu.model.transformer import AttentionFunction
from m3ae_tpu.train.optimizer import adamw, is_matrix, learning_rate_schedule
from m3ae_tpu.train.reconstruction import Batch, Metrics, reconstruction_loss

# Streams of random numbers that one seed feeds; data order has its own, in `data/mixture.py`.
_MODEL_STREAM, _STEP_STREAM = 0, 1


class TrainState(eqx.Module):
    """All arrays that a checkpoint must hold to go on bit for bit; with the config and the data
    position.
    """

    step: Int[Array, ""]
    """int32, finished steps."""
    model: M3AE
    optimizer_state: PyTree


def init_model(
    config: PretrainConfig,
    attention_fn: AttentionFunction = reference.attention,
    cross_entropy_fn: CrossEntropyFunction = ce_reference.cross_entropy,
) -> M3AE:
    """Draws the initial model of a run: a pure function of `config.model` and `config.seed`."""
    key = jax.random.fold_in(jax.random.key(config.seed), _MODEL_STREAM)
    return M3AE(config.model, key=key, attention_fn=attention_fn, cross_entropy_fn=cross_entropy_fn)


def make_optimizer(config: PretrainConfig) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Returns the run's optimizer and its learning rate by update."""
    schedule = learning_rate_schedule(
        config.optimizer, batch_size=config.batch_size, num_steps=config.num_steps
    )
    return adamw(config.optimizer, schedule, is_matrix), schedule


def init_state(
    config: PretrainConfig,
    attention_fn: AttentionFunction = reference.attention,
    cross_entropy_fn: CrossEntropyFunction = ce_reference.cross_entropy,
) -> TrainState:
    """Returns the state before the first step."""
    model = init_model(config, attention_fn, cross_entropy_fn)
    optimizer, _ = make_optimizer(config)
    return TrainState(
        jnp.zeros((), jnp.int32), model, optimizer.init(eqx.filter(model, eqx.is_array))
    )


def step_key(config: PretrainConfig, step: Int[Array, ""]) -> Key[Array, ""]:
    """Returns the key of one step: of the seed and the step's number alone."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), _STEP_STREAM), step)


def train_step(
    state: TrainState,
    batch: Batch,
    *,
    config: PretrainConfig,
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, Metrics]:
    """Takes one optimizer step on a global batch.

    With `optimizer.accumulation_steps` the batch is computed in parts and the gradients' mean is
    applied: the same update to rounding, as every term is a mean over rows.

    Args:
        state: Before the step; may be donated.
        batch: Arrays by kind, see `data/records.py`; rows over all devices.
        config: The run's.
        optimizer: From `make_optimizer(config)`.

    Returns:
        The state after the step, and scalars: the terms of `reconstruction_loss`, `grad_norm`, the
        gradient's global norm before any clip, and `parameter_norm`, that of the parameters after
        the update.
    """
    key = step_key(config, state.step)
    rows = {
        kind: jnp.arange(next(iter(arrays.values())).shape[0]) for kind, arrays in batch.items()
    }
    gradient = jax.value_and_grad(reconstruction_loss, has_aux=True)
    parts = config.optimizer.accumulation_steps
    if parts == 1:
        (_, metrics), gradients = gradient(state.model, batch, rows, key, config)
    else:
        gradients, metrics = _accumulate(gradient, state.model, (batch, rows), key, config, parts)
    parameters = eqx.filter(state.model, eqx.is_array)
    with (
        jax.named_scope("optimizer"),
        jax.numpy_dtype_promotion("standard"),
    ):  # Optax raises floats to the power of an int32 count.
        updates, optimizer_state = optimizer.update(gradients, state.optimizer_state, parameters)
        model = eqx.apply_updates(state.model, updates)
        metrics["grad_norm"] = optax.tree.norm(gradients)
        metrics["parameter_norm"] = optax.tree.norm(eqx.filter(model, eqx.is_array))
    return TrainState(state.step + 1, model, optimizer_state), metrics


def _accumulate(
    gradient, model: M3AE, batch_and_rows: PyTree, key: Key[Array, ""], config, parts: int
):
    """Computes the mean gradient and the metrics of a batch in equal parts, one after the other."""

    # Row r goes to part r % parts, so that every part lies on all devices.
    def split(leaf: Array) -> Array:
        return leaf.reshape(-1, parts, *leaf.shape[1:]).swapaxes(0, 1)

    def add(total: PyTree, part: PyTree) -> tuple[PyTree, None]:
        (_, metrics), gradients = gradient(model, *part, key, config)
        return jax.tree.map(jnp.add, total, (gradients, metrics)), None

    stacked = jax.tree.map(split, batch_and_rows)
    first = jax.tree.map(lambda leaf: leaf[0], stacked)
    shapes = jax.eval_shape(lambda: gradient(model, *first, key, config))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), (shapes[1], shapes[0][1]))
    (gradients, metrics), _ = jax.lax.scan(add, zeros, stacked)
    gradients = jax.tree.map(lambda leaf: leaf / parts, gradients)
    is_count = {name: jnp.issubdtype(value.dtype, jnp.integer) for name, value in metrics.items()}
    return gradients, {
        name: value if is_count[name] else value / parts for name, value in metrics.items()
    }
