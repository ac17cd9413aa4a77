"""The optimizer: AdamW as in the paper, or Muon; linear warm-up, cosine decay, weight decay."""

from collections.abc import Callable

import jax
import optax
from jaxtyping import PyTree

from m3ae_tpu.config import OptimizerConfig
from m3ae_tpu.train.muon import muon_for_matrices


def learning_rate_schedule(
    config: OptimizerConfig, *, batch_size: int, num_steps: int
) -> optax.Schedule:
    """Returns the rate of update 0, 1, 2, ...: from 0 to the peak in a line, then to the end value
    along a cosine.

    The peak is `base_learning_rate * batch_size / 256`, with the batch of a whole update also where
    gradients are accumulated, and the end value likewise. The first update has rate 0 where
    there is a warm-up, as in the paper's code; from `num_steps` on the rate is the end value.
    """
    peak = config.base_learning_rate * batch_size / 256
    # + 1e-9: 0.1 * 30 is 3.0000000000000004, 0.07 * 100 is 7.000000000000001, others fall below.
    warmup_steps = min(int(config.warmup_fraction * num_steps + 1e-9), num_steps - 1)
    end = config.end_learning_rate * batch_size / 256
    return optax.warmup_cosine_decay_schedule(0.0, peak, warmup_steps, num_steps, end)


def make_optimizer(
    config: OptimizerConfig, *, batch_size: int, num_steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """Returns a run's optimizer and its learning rate by update."""
    schedule = learning_rate_schedule(config, batch_size=batch_size, num_steps=num_steps)
    return gradient_transformation(config, schedule, is_matrix), schedule


def gradient_transformation(
    config: OptimizerConfig,
    schedule: optax.Schedule,
    is_decayed: PyTree | Callable[[PyTree], PyTree],
) -> optax.GradientTransformation:
    """Returns an optimizer with decoupled decay, after an optional clip of the gradient's norm.

    Args:
        config: Its name, betas, decay, and clip of the gradient's global norm.
        schedule: Rate by update.
        is_decayed: A bool for each parameter, or a function that returns them, see `is_matrix`.
    """
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm > 0 else optax.identity()
    scale = optax.scale_by_adam(config.beta1, config.beta2, eps=1e-8)
    if config.name == "muon":
        scale = muon_for_matrices(others=scale)
    return optax.chain(
        clip,
        scale,
        optax.add_decayed_weights(config.weight_decay, is_decayed),
        optax.scale_by_learning_rate(schedule),
    )


def is_matrix(model: PyTree) -> PyTree:
    """Marks what is decayed: kernels of linear layers. Biases, norms, tokens and embeddings are
    not.
    """
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].name == "kernel", model)
