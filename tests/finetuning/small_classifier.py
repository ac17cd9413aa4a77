"""A small classifier of three classes, on images that noise draws."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from m3ae_tpu.batch import Rows
from m3ae_tpu.config import (
    AugmentationConfig,
    CheckpointConfig,
    DataConfig,
    EvaluationConfig,
    FinetuneConfig,
    HeadConfig,
    LoggingConfig,
    ModelConfig,
    SourceConfig,
    TransformerConfig,
)
from m3ae_tpu.finetuning.objective import init_classifier
from m3ae_tpu.model.classifier import Classifier
from m3ae_tpu.parallel.operations import Operations

CLASSES = ("cat", "dog", "fox")
ENCODER = TransformerConfig(num_layers=3, width=16, num_heads=2)
NOTHING = AugmentationConfig(
    rand_augment_operations=0, erasing_probability=0.0, mixup_alpha=0.0, cutmix_alpha=0.0
)
CONFIG = FinetuneConfig(
    num_steps=6,
    batch_size=16,
    classes=CLASSES,
    model=ModelConfig(
        patch_size=8,
        vocab_size=0,
        encoder=ENCODER,
        decoder=TransformerConfig(num_layers=0),
        compute_dtype="float32",
    ),
    data=DataConfig(
        sources=(SourceConfig(kind="image"),), image_size=16, num_workers=0, crop_area=(0.5, 1.0)
    ),
    checkpoint=CheckpointConfig(every_steps=2),
    logging=LoggingConfig(every_steps=1),
)


def of_data(train: str, test: str = "", **fields) -> FinetuneConfig:
    """Returns the config of a run on some shards."""
    data = dataclasses.replace(CONFIG.data, sources=(SourceConfig(kind="image", shards=train),))
    evaluation = EvaluationConfig(shards=test, every_steps=2)
    return dataclasses.replace(CONFIG, data=data, evaluation=evaluation, classes=(), **fields)


@functools.cache
def classifier(pooling: str = "image_mean", operations: Operations = Operations()) -> Classifier:
    """Returns a classifier with random weights, also in its head."""
    config = dataclasses.replace(CONFIG, head=HeadConfig(pooling=pooling))  # pyright: ignore
    shapes = jax.eval_shape(functools.partial(init_classifier, config, operations))
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(random.normal(0, 0.2, leaf.shape), leaf.dtype), shapes
    )


def images(count: int = 8) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (count, 16, 16, 3), np.uint8)


def batch(count: int = 8) -> dict:
    labels = (np.arange(count) % 3).astype(np.int32)
    return {"image": Rows(images=images(count), is_flipped=np.zeros(count, bool), labels=labels)}
