"""Predictions of a fine-tuned run for images, written as a table."""

import csv
import io
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import rich.progress

from m3ae_tpu.config import FinetuneConfig
from m3ae_tpu.data.shards import open_shards
from m3ae_tpu.errors import require
from m3ae_tpu.files import atomic_write
from m3ae_tpu.finetuning.labelled_stream import LabelledStream
from m3ae_tpu.finetuning.scoring import logits_of
from m3ae_tpu.model.inputs import Normalizer
from m3ae_tpu.parallel.mesh import make_mesh
from m3ae_tpu.pretrained.loading import load_classifier
from m3ae_tpu.run.workdir import result_file

PREDICTIONS = "predictions.csv"
COLUMNS = ("id", "class", "predicted", "probability")


def predict_workdir(workdir: pathlib.Path, pattern: str) -> pathlib.Path:
    """Classifies the images of shards by the newest checkpoint of a run.

    Writes `predictions.csv`: id, class as stored (empty if it is none of the run's), predicted
    class, its probability. Prints the accuracy where classes are stored. Broken images are named
    and left out.

    Args:
        workdir: The run's.
        pattern: Glob of shards of images, labelled or not.

    Returns:
        The file.

    Raises:
        UserError: the workdir holds no fine-tuning run, or the shards cannot be read.
    """
    path = result_file(workdir, None, PREDICTIONS)
    config, step, model = load_classifier(workdir)
    shards, mesh = open_shards(pattern), make_mesh()
    stream = LabelledStream(
        shards,
        range(len(shards)),
        classes=config.classes,
        image_size=config.data.image_size,
        mesh=mesh,
    )
    table, num_known, num_right = _classify(config, model, stream)
    require(bool(table), f"--predict = {pattern} holds no image that can be read.")
    content = io.StringIO()
    writer = csv.writer(content, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(table)
    atomic_write(path, content.getvalue())
    print(f"{len(table):,} images classified by step {step}, {len(shards) - len(table):,} left out")
    if num_known:
        share = num_right / num_known
        print(f"accuracy: {share:.4f} ({num_right:,} of {num_known:,} with a class of the run's)")
    print(f"wrote {path}")
    return path


def _classify(
    config: FinetuneConfig, model, stream: LabelledStream
) -> tuple[list[tuple[str, str, str, str]], int, int]:
    """Returns the rows of the table, how many have a known class, and how many are right."""
    normalizer = Normalizer.of_data(config.data)

    @jax.jit
    def classify(model, images):
        probs = jax.nn.softmax(logits_of(model, images, normalizer).astype(jnp.float32))
        return jnp.argmax(probs, axis=1), probs.max(axis=1)

    table, num_known, num_right = [], 0, 0
    for batch in rich.progress.track(stream, "classifying", total=len(stream), transient=True):
        predicted, probs = jax.tree.map(np.asarray, classify(model, batch.images))
        labels, is_counted = np.asarray(batch.labels), np.asarray(batch.is_counted)
        for row in np.flatnonzero(is_counted):
            stored = config.classes[labels[row]] if labels[row] >= 0 else ""
            guess = config.classes[predicted[row]]
            table.append((batch.ids[row], stored, guess, f"{probs[row]:.4f}"))
            num_known += bool(stored)
            num_right += stored == guess
    return table, num_known, num_right
