"""Scores of a classifier on labelled examples, each counted exactly once."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, UInt8

from m3ae_tpu.batch import Rows
from m3ae_tpu.finetuning.averaging import average_of
from m3ae_tpu.finetuning.labelled_stream import LabelledStream
from m3ae_tpu.model.classifier import Classifier
from m3ae_tpu.model.inputs import Normalizer, make_inputs
from m3ae_tpu.parallel.mesh import replicated
from m3ae_tpu.train.step import TrainState

_TOP = 5
"""Guesses of the second accuracy, as ImageNet has it."""


def logits_of(
    model: Classifier, images: UInt8[Array, "batch height width 3"], normalizer: Normalizer
) -> Float[Array, "batch classes"]:
    """Computes the logits of whole images; nothing is dropped or changed."""
    return model(make_inputs(Rows(images=images), normalizer, jnp.float32))


def add_up(
    model: Classifier,
    images: UInt8[Array, "batch height width 3"],
    labels: Int[Array, " batch"],
    is_counted: Bool[Array, " batch"],
    *,
    normalizer: Normalizer,
) -> dict[str, Array]:
    """Returns sums over the rows that count: how many, right ones, and their cross-entropy."""
    logits = logits_of(model, images, normalizer).astype(jnp.float32)
    has_top = logits.shape[1] > _TOP  # Otherwise all of them are right.
    rank = (logits > jnp.take_along_axis(logits, labels[:, None], axis=1)).sum(axis=1)
    nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1)[:, 0]
    is_right = jnp.argmax(logits, axis=1) == labels
    return {
        "examples": is_counted.sum(dtype=jnp.int32),
        "accuracy": (is_right & is_counted).sum(dtype=jnp.int32),
        "loss": jnp.where(is_counted, nll, 0.0).sum(),
    } | ({"top5_accuracy": ((rank < _TOP) & is_counted).sum(dtype=jnp.int32)} if has_top else {})


class Scorer:
    """Scores the model of a state, and the running average beside it, on a set of examples."""

    def __init__(self, stream: LabelledStream, normalizer: Normalizer, mesh: Mesh):
        self._stream = stream
        self._add_up = jax.jit(
            functools.partial(add_up, normalizer=normalizer), out_shardings=replicated(mesh)
        )

    def __call__(self, state: TrainState) -> dict[str, float]:
        """Returns `finetune/accuracy`, `top5_accuracy` and `loss`, means over all examples.

        With a running average, `finetune/average/accuracy` and so on are those of it.
        `finetune/examples` is the number of examples.
        """
        models = {"": state.model}
        average = average_of(state.optimizer_state)
        if average is not None:
            models["average/"] = average
        totals: dict[str, dict[str, Any]] = {name: {} for name in models}
        for batch in self._stream:
            sums = {
                name: self._add_up(model, batch.images, batch.labels, batch.is_counted)
                for name, model in models.items()
            }
            for name, of_model in sums.items():
                for figure, value in of_model.items():
                    totals[name][figure] = totals[name].get(figure, 0) + value.item()
        line: dict[str, float] = {}
        for name, figures in totals.items():
            count = figures.pop("examples")
            line["finetune/examples"] = float(count)
            line |= {
                f"finetune/{name}{figure}": total / max(1, count)
                for figure, total in figures.items()
            }
        return line
