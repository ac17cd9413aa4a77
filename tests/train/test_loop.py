"""Guards that another objective trains through the same step, loop and checkpoints."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from m3ae_tpu.config import CheckpointConfig, DataConfig, LoggingConfig, RunConfig, SourceConfig
from m3ae_tpu.data.sources import open_data
from m3ae_tpu.run.checkpoint_reader import CheckpointReader
from m3ae_tpu.run.metrics import read_metrics
from m3ae_tpu.run.workdir import prepare_workdir
from m3ae_tpu.train.loop import Probe, train
from m3ae_tpu.train.objective import Objective
from m3ae_tpu.train.step import Metrics

CONFIG = RunConfig(
    num_steps=6,
    batch_size=16,
    data=DataConfig(
        sources=(SourceConfig(kind="image", shards="starter/images-*"),),
        image_size=16,
        num_workers=0,
    ),
    checkpoint=CheckpointConfig(every_steps=2),
    logging=LoggingConfig(every_steps=1),
)


class Brightness(eqx.Module):
    """Guesses the mean of an image from its upper half."""

    kernel: jax.Array

    def __init__(self, operations):
        self.kernel = jnp.zeros((8 * 16 * 3,))


def squared_error(model, batch, rows, key):
    images = batch["image"].images.astype(jnp.float32) / 255
    guess = images[:, :8].reshape(len(images), -1) @ model.kernel
    error = jnp.square(guess - images.mean(axis=(1, 2, 3))).mean()
    return error, Metrics({"error": error}, {"num_images": jnp.int32(len(images))})


OBJECTIVE = Objective(
    init_model=Brightness,
    loss=squared_error,
    describe=lambda model, batch: [("parameters", f"{model.kernel.size}")],
)


def run(workdir, *, num_steps=CONFIG.num_steps, **options: Any):
    config = dataclasses.replace(CONFIG, num_steps=num_steps)
    data = open_data(config.data, batch_size=16, seed=config.seed, vocab_size=0)
    prepared = prepare_workdir(workdir, config)
    try:
        return train(config, OBJECTIVE, data, prepared, **options)
    finally:
        prepared.unlock()


def test_a_toy_objective_learns_saves_and_goes_on(tmp_path):
    probe = Probe(3, lambda state: {"probe/norm": float(jnp.abs(state.model.kernel).sum())})
    assert run(tmp_path / "whole", probe=probe) == 6
    lines = read_metrics(tmp_path / "whole")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert lines[-1]["train/error"] == lines[-1]["train/loss"] < lines[0]["train/loss"]
    assert {line["train/num_images"] for line in lines} == {16}
    assert [line["step"] for line in lines if "probe/norm" in line] == [3, 6]

    stored = CheckpointReader(tmp_path / "whole").read(6)
    assert stored.model.keys() == {"kernel"}
    assert np.abs(stored.model["kernel"]).max() > 0
    # An extended run has another schedule, so the same number of steps is asked for again.
    assert run(tmp_path / "whole") == 6


def test_accumulation_takes_any_objective(tmp_path):
    whole, accumulated = (
        dataclasses.replace(
            CONFIG, optimizer=dataclasses.replace(CONFIG.optimizer, accumulation_steps=steps)
        )
        for steps in (1, 2)
    )
    for config in (whole, accumulated):
        steps = config.optimizer.accumulation_steps
        data = open_data(config.data, batch_size=16, seed=0, vocab_size=0)
        prepared = prepare_workdir(tmp_path / str(steps), config)
        train(config, OBJECTIVE, data, prepared)
        prepared.unlock()
    ours, theirs = (
        CheckpointReader(tmp_path / str(steps)).read(6).model["kernel"] for steps in (1, 2)
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-7)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(tmp_path, value):
    def loss(model, batch, rows, key):
        error, metrics = squared_error(model, batch, rows, key)
        return error + jnp.float32(value), metrics

    data = open_data(CONFIG.data, batch_size=16, seed=0, vocab_size=0)
    prepared = prepare_workdir(tmp_path, CONFIG)
    with pytest.raises(ValueError, match=r"train/loss = (nan|inf) at step 1 is not finite"):
        train(CONFIG, OBJECTIVE._replace(loss=loss), data, prepared)
    prepared.unlock()
