"""The CLIP baseline: an image tower and a text tower of the encoder's size, and a contrastive loss.

Radford et al. 2021, arXiv 2103.00020. The towers are M3AE's own encoders, without a decoder.
"""

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from m3ae_tpu.batch import Batch
from m3ae_tpu.config import Kind, PretrainConfig, TransformerConfig
from m3ae_tpu.model.inputs import Inputs, Normalizer, make_inputs
from m3ae_tpu.model.m3ae import M3AE
from m3ae_tpu.model.transformer import Linear
from m3ae_tpu.parallel.operations import Operations
from m3ae_tpu.train.objective import Objective
from m3ae_tpu.train.step import Metrics, model_key

_LARGEST_SCALE = 100.0


class Clip(eqx.Module):
    """Two towers, and the space in which their class tokens are compared."""

    image_tower: M3AE
    text_tower: M3AE
    """Without parameters for images."""
    image_projection: Linear
    text_projection: Linear
    log_scale: Float[Array, ""]
    """Logarithm of the factor before cosines, 1 / temperature."""

    def __init__(
        self, config: PretrainConfig, *, key: Key[Array, ""], operations: Operations = Operations()
    ):
        """Draws initial values; the projections keep the encoder's width."""
        keys = jax.random.split(key, 4)
        tower = encoder_alone(config.model.encoder)
        words = dataclasses.replace(config.model, decoder=tower)
        pixels = dataclasses.replace(words, vocab_size=0)
        self.image_tower = M3AE(pixels, key=keys[0], operations=operations)
        text_tower = M3AE(words, key=keys[1], operations=operations)
        self.text_tower = eqx.tree_at(lambda model: model.image, text_tower, None)
        width = config.model.encoder.width
        self.image_projection = Linear(width, width, key=keys[2], operations=operations)
        self.text_projection = Linear(width, width, key=keys[3], operations=operations)
        self.log_scale = jnp.asarray(math.log(1 / 0.07), jnp.float32)


def encoder_alone(encoder: TransformerConfig) -> TransformerConfig:
    """Returns the settings of a decoder that is not there."""
    return dataclasses.replace(encoder, num_layers=0)


def contrastive(config: PretrainConfig) -> Objective:
    """Returns CLIP's objective for the pairs of a run.

    The negatives of a pair are the other pairs of its batch, so the batch is not computed in
    micro-batches.
    """
    normalizer = Normalizer.of_data(config.data)

    def loss(
        model: Clip, batch: Batch, rows: dict[Kind, Int[Array, " batch"]], key: Key[Array, ""]
    ) -> tuple[Array, Metrics]:
        inputs = make_inputs(batch["paired"], normalizer, jnp.float32)
        value, accuracy = contrastive_loss(model, inputs)
        return value, Metrics({"contrastive_accuracy": accuracy}, {})

    return Objective(
        init_model=lambda operations: Clip(
            config, key=model_key(config.seed), operations=operations
        ),
        loss=loss,
    )


def contrastive_loss(model: Clip, inputs: Inputs) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Computes the mean cross-entropy of finding each caption's image and each image's caption.

    Args:
        model: The towers.
        inputs: Pairs; each row's others are its negatives.

    Returns:
        The loss, and the share of images that are nearest to their own caption.
    """
    texts = Inputs(text_ids=inputs.text_ids, is_valid=inputs.is_valid)
    images = _directions(model.image_tower, model.image_projection, Inputs(images=inputs.images))
    words = _directions(model.text_tower, model.text_projection, texts)
    scale = jnp.minimum(jnp.exp(model.log_scale), _LARGEST_SCALE)
    scores = scale * images @ words.T
    own = jnp.diagonal(scores)
    to_texts = jax.nn.logsumexp(scores, axis=1) - own
    to_images = jax.nn.logsumexp(scores, axis=0) - own
    is_right = jnp.argmax(scores, axis=1) == jnp.arange(scores.shape[0])
    return ((to_texts + to_images) / 2).mean(), is_right.astype(jnp.float32).mean()


def _directions(
    tower: M3AE, projection: Linear, inputs: Inputs
) -> Float[Array, "batch directions"]:
    """Returns the class tokens in the common space, of length 1."""
    projected = projection(tower.encode(inputs).cls[:, None])[:, 0].astype(jnp.float32)
    return projected / jnp.linalg.norm(projected, axis=1, keepdims=True)
