"""A classifier of images: the encoder, and a linear head on what is pooled of its tokens."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from m3ae_tpu.config import FinetuneConfig
from m3ae_tpu.model.inputs import Inputs
from m3ae_tpu.model.m3ae import M3AE
from m3ae_tpu.model.masking import Masks
from m3ae_tpu.model.transformer import LayerNorm, Linear
from m3ae_tpu.parallel.operations import Operations

_HEAD_DEVIATION = 2e-5
"""Standard deviation of the head's initial kernel, as He et al. (2022) fine-tune."""


class Classifier(eqx.Module):
    """An encoder with a head; all leaves are arrays."""

    m3ae: M3AE
    """Without decoder and text."""
    norm: LayerNorm | None
    """Norm of what is pooled; None where the head sees the class token alone."""
    class_head: Linear
    pooling: str = eqx.field(static=True)

    def __init__(
        self, config: FinetuneConfig, *, key: Key[Array, ""], operations: Operations = Operations()
    ):
        """Draws initial values: the encoder's as in pre-training, the head's near 0.

        Args:
            config: Sizes, pooling and classes.
            key: Decides every initial value.
            operations: Those of the mesh that the model computes on.
        """
        width, dtype = config.model.encoder.width, jnp.dtype(config.model.parameter_dtype)
        self.m3ae = M3AE(config.model, key=key, operations=operations)
        self.norm = None
        self.pooling = config.head.pooling
        if self.pooling != "cls":
            self.norm = LayerNorm(width, epsilon=config.model.norm_epsilon, dtype=dtype)
        head_key = jax.random.fold_in(key, 0)
        head = functools.partial(Linear, dtype=dtype, operations=operations, name="class_head")
        num_pooled = 3 if self.pooling == "cls_image_mean_max" else 1
        head = head(num_pooled * width, len(config.classes), key=head_key)
        kernel = _HEAD_DEVIATION * jax.random.normal(head_key, head.kernel.shape, dtype)
        self.class_head = eqx.tree_at(lambda head: head.kernel, head, kernel)

    def __call__(
        self,
        inputs: Inputs,
        masks: Masks = Masks(),
        branch_scales: Float[Array, "layers batch 2"] | None = None,
    ) -> Float[Array, "batch classes"]:
        """Computes the logits of the classes, float32 or wider.

        Args:
            inputs: Whole images.
            masks: Selects the patches that training sees; without one all of them are seen.
            branch_scales: Factors of drop path in training; None leaves nothing out.
        """
        tokens = self.m3ae.encoder(
            *self.m3ae.embed(inputs, masks),
            final_norm=self.norm is None,
            branch_scales=branch_scales,
        )
        pooled = _pool(tokens, self.pooling)
        if self.norm is not None:
            pooled = self.norm(pooled)
        pooled = pooled.reshape(len(pooled), 1, -1)
        return self.class_head(pooled.astype(np.promote_types(pooled.dtype, np.float32)))[:, 0]


def _pool(
    tokens: Float[Array, "batch tokens width"], pooling: str
) -> Float[Array, "batch pooled width"]:
    """Returns the vectors that a head sees: one, or three that stand side by side there."""
    cls, patches = tokens[:, :1], tokens[:, 1:]
    if pooling == "cls":
        return cls
    mean = patches.mean(axis=1, keepdims=True)
    if pooling == "image_mean":
        return mean
    largest = patches.max(axis=1, keepdims=True)
    if pooling == "image_avgmax":
        return (mean + largest) / 2
    return jnp.concatenate([cls, mean, largest], axis=1)
