"""Fine-tuning as an objective: the classifier, its loss, its rates by layer."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Int, Key

from m3ae_tpu import scopes
from m3ae_tpu.batch import Batch
from m3ae_tpu.config import FinetuneConfig, Kind, MaskingConfig
from m3ae_tpu.finetuning.averaging import average_weights
from m3ae_tpu.finetuning.erasing import erase
from m3ae_tpu.finetuning.layer_decay import scale_by_layer
from m3ae_tpu.finetuning.mixing import Mixture, draw_mixture, mixed_targets
from m3ae_tpu.model.classifier import Classifier
from m3ae_tpu.model.inputs import Inputs, Normalizer, make_inputs
from m3ae_tpu.model.masking import Masks, draw_masks, num_visible
from m3ae_tpu.model.transformer import draw_branch_scales
from m3ae_tpu.parallel.operations import Operations
from m3ae_tpu.train.card import Card, size
from m3ae_tpu.train.flops import flops_by_scope
from m3ae_tpu.train.objective import Objective
from m3ae_tpu.train.step import Metrics, model_key

_POOLED = {
    "cls": "the class token",
    "image_mean": "the mean of the patches",
    "image_avgmax": "half the sum of mean and maximum of the patches",
    "cls_image_mean_max": "the class token, mean and maximum of the patches",
}


def finetuning(
    config: FinetuneConfig, with_weights: Callable[[Classifier], Classifier] | None = None
) -> Objective:
    """Returns the objective of a fine-tuning run.

    Args:
        config: The run's, with its classes.
        with_weights: Puts the pre-trained encoder in the place of the initial one; None: from
            scratch.
    """
    loss = functools.partial(
        classification_loss, config=config, normalizer=Normalizer.of_data(config.data)
    )
    return Objective(
        init_model=functools.partial(init_classifier, config),
        loss=loss,
        describe=functools.partial(_card, config, loss),
        count_flops=functools.partial(_count_flops, config, loss),
        with_weights=with_weights,
        after_optimizer=_after_optimizer(config),
    )


def init_classifier(config: FinetuneConfig, operations: Operations = Operations()) -> Classifier:
    """Draws the initial model of a run."""
    return Classifier(config, key=model_key(config.seed), operations=operations)


def classification_loss(
    model: Classifier,
    batch: Batch,
    rows: dict[Kind, Int[Array, " batch"]],
    key: Key[Array, ""],
    *,
    config: FinetuneConfig,
    normalizer: Normalizer,
) -> tuple[Array, Metrics]:
    """Computes the cross-entropy of smoothed and mixed targets, the mean over the rows.

    Args:
        model: In any parameter dtype; the loss is float32 or wider.
        batch: Images with labels.
        rows: int32, each row's place in the global batch.
        key: The step's; with `rows` it decides masks, drop path, erasing and mixing.
        config: The run's.
        normalizer: The run's normaliser of images.

    Returns:
        The loss; with it the mean `accuracy`, of the images as they are trained on, each with its
        own class; and the count `num_images`.
    """
    images, labels = batch["image"], batch["image"].labels
    operations, augmentation = model.m3ae.operations, config.augmentation
    drop_key, erase_key, mix_key, mask_key = jax.random.split(key, 4)

    def row_keys(key: Key[Array, ""]) -> Key[Array, " batch"]:
        places = operations.constrain(rows["image"])
        return jax.vmap(lambda row: jax.random.fold_in(key, row))(places)

    dtype = np.promote_types(model.m3ae.compute_dtype, np.float32)
    with jax.named_scope(scopes.EMBED):
        inputs = make_inputs(images, normalizer, dtype)
        pixels = inputs.images
        assert pixels is not None
        if augmentation.erasing_probability > 0:
            pixels = erase(pixels, row_keys(erase_key), augmentation.erasing_probability)
        mixture = Mixture(jnp.ones(pixels.shape[1:3]))
        if augmentation.is_mixed:
            height, width = pixels.shape[1:3]
            mixture = draw_mixture(mix_key, (height, width), augmentation)
            pixels = operations.constrain(mixture(pixels))
    scales = None
    if config.drop_path > 0:
        num_layers = config.model.encoder.num_layers
        scales = draw_branch_scales(row_keys(drop_key), num_layers, config.drop_path)
    masks = Masks()
    if config.image_mask_ratio > 0:
        height, width = model.m3ae.grid(pixels)
        masking = MaskingConfig(image_mask_ratio=config.image_mask_ratio)
        masks = draw_masks(mask_key, rows["image"], masking, num_patches=height * width)
    logits = model(Inputs(pixels), masks, scales)
    targets = mixed_targets(labels, logits.shape[1], mixture.share, config.label_smoothing)
    nll = -(targets.astype(logits.dtype) * jax.nn.log_softmax(logits)).sum(axis=1)
    is_right = (jnp.argmax(logits, axis=1) == labels).astype(jnp.float32)
    counts = {"num_images": jnp.int32(len(labels))}
    return nll.mean(), Metrics({"accuracy": is_right.mean()}, counts)


def _after_optimizer(config: FinetuneConfig) -> optax.GradientTransformation | None:
    layers, optimizer = config.model.encoder.num_layers, config.optimizer
    parts = []
    if optimizer.layer_decay < 1:
        parts.append(scale_by_layer(optimizer.layer_decay, layers))
    if optimizer.average_decay > 0:
        parts.append(average_weights(optimizer.average_decay))
    return optax.chain(*parts) if parts else None


def _card(config: FinetuneConfig, loss, model: Classifier, batch: Batch) -> Card:
    """Returns the size of the network, its cost for an image, and how it is fine-tuned."""
    num_rows = len(batch["image"].labels)
    flops = _count_flops(config, loss, batch) / num_rows
    side = config.data.image_size
    num_patches = (side // config.model.patch_size) ** 2
    num_seen = num_visible(num_patches, config.image_mask_ratio)
    seen = "" if num_seen == num_patches else f", {num_seen} of them seen in training"
    return [
        ("parameters", f"{size(model):,}, of which the head has {size(model.class_head):,}"),
        ("FLOPs per example", f"{flops / 1e9:.3g} G, forward and backward"),
        ("images", f"{side} px, {num_patches} patches{seen}"),
        ("classes", f"{len(config.classes):,}"),
        ("head", f"on {_POOLED[config.head.pooling]}"),
        ("layer decay", f"{config.optimizer.layer_decay:g}; drop path {config.drop_path:g}"),
        (
            "dtypes",
            f"{config.model.compute_dtype} compute, {config.model.parameter_dtype} parameters",
        ),
    ]


def _count_flops(config: FinetuneConfig, loss, batch: Batch) -> int:
    """Returns the FLOPs of the matrix products for a batch, forward and backward."""
    plain = dataclasses.replace(config, model=dataclasses.replace(config.model, remat=False))
    reference = jax.eval_shape(functools.partial(init_classifier, plain))
    return sum(flops_by_scope(loss, reference, batch).values())
