"""The supervised baseline: the image tower learns the classes of labelled images."""

import dataclasses
import pathlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from m3ae_tpu.batch import Batch
from m3ae_tpu.config import Kind, PretrainConfig
from m3ae_tpu.config.tree import replaced
from m3ae_tpu.data.shards import open_shards, write_shards
from m3ae_tpu.data.text import Tokenizer
from m3ae_tpu.experiments.clip import encoder_alone
from m3ae_tpu.model.inputs import Inputs, Normalizer, make_inputs
from m3ae_tpu.model.m3ae import M3AE
from m3ae_tpu.model.transformer import Linear
from m3ae_tpu.parallel.operations import Operations
from m3ae_tpu.train.objective import Objective
from m3ae_tpu.train.step import Metrics, model_key

_SHARDS = "labels-*"


class Classifier(eqx.Module):
    """An image tower, and a linear head on the mean of its patches."""

    image_tower: M3AE
    head: Linear

    def __init__(
        self,
        config: PretrainConfig,
        num_classes: int,
        *,
        key: Key[Array, ""],
        operations: Operations = Operations(),
    ):
        """Draws initial values."""
        keys = jax.random.split(key, 2)
        decoder = encoder_alone(config.model.encoder)
        settings = dataclasses.replace(config.model, vocab_size=0, decoder=decoder)
        self.image_tower = M3AE(settings, key=keys[0], operations=operations)
        width = config.model.encoder.width
        self.head = Linear(width, num_classes, key=keys[1], operations=operations)

    def __call__(self, inputs: Inputs) -> Float[Array, "batch classes"]:
        means = self.image_tower.encode(inputs).image_mean
        assert means is not None
        return self.head(means[:, None])[:, 0].astype(jnp.float32)


def with_labels(config: PretrainConfig, folder: pathlib.Path) -> PretrainConfig:
    """Returns a config whose captions are the names of the classes.

    Args:
        config: Its source is labelled.
        folder: Gets the shards, unless it has them.
    """
    if not list(folder.glob(f"{_SHARDS}.array_record")):
        folder.mkdir(parents=True, exist_ok=True)
        records = open_shards(config.data.sources[0].shards)
        labelled = [
            dataclasses.replace(record, captions=(record.label_name,)) for record in records
        ]
        write_shards(folder, "labels", labelled)
    return replaced(config, {"data.sources.0.shards": str(folder / _SHARDS)})


def supervised(config: PretrainConfig) -> Objective:
    """Returns the objective of a run whose captions are the names of classes; see `with_labels`."""
    source = config.data.sources[0]
    names = sorted({record.label_name for record in open_shards(source.shards)})
    class_ids, _, _ = Tokenizer(config.data.tokenizer).encode(names, source.text_length)
    normalizer = Normalizer.of_data(config.data)

    def loss(
        model: Classifier, batch: Batch, rows: dict[Kind, Int[Array, " batch"]], key: Key[Array, ""]
    ) -> tuple[Array, Metrics]:
        pairs = batch["paired"]
        labels = classes_of(pairs.text_ids, class_ids)
        scores = model(make_inputs(pairs._replace(text_ids=None), normalizer, jnp.float32))
        own = jnp.take_along_axis(scores, labels[:, None], axis=1)[:, 0]
        value = (jax.nn.logsumexp(scores, axis=1) - own).mean()
        is_right = jnp.argmax(scores, axis=1) == labels
        return value, Metrics({"class_accuracy": is_right.astype(jnp.float32).mean()}, {})

    return Objective(
        init_model=lambda operations: Classifier(
            config, len(names), key=model_key(config.seed), operations=operations
        ),
        loss=loss,
    )


def classes_of(
    text_ids: Int[Array, "batch length"], class_ids: Int[np.ndarray, "classes length"]
) -> Int[Array, " batch"]:
    """Returns the class whose name each row's tokens spell."""
    is_class = (text_ids[:, None] == jnp.asarray(class_ids)[None]).all(axis=2)
    return jnp.argmax(is_class, axis=1)
