"""Guards fine-tuning runs: they begin with the encoder, resume exactly, and serve as models."""

import csv
import dataclasses
import json

import jax
import numpy as np
import pytest
from labelled_sets import write_labelled
from small_classifier import CLASSES, CONFIG, of_data
from small_run import CONFIG as PRETRAINED
from small_run import save_run, trained_run, with_source

from m3ae_tpu.config import FinetuneOptimizerConfig, PretrainConfig
from m3ae_tpu.errors import UserError
from m3ae_tpu.finetuning import run as running
from m3ae_tpu.finetuning.predictions import predict_workdir
from m3ae_tpu.finetuning.run import finetune
from m3ae_tpu.finetuning.start import encoder_weights, require_same_network, settings_of
from m3ae_tpu.pretrained.loading import load_config, load_pretrained
from m3ae_tpu.run.checkpoint_reader import CheckpointReader, named_arrays
from m3ae_tpu.run.metrics import read_metrics
from m3ae_tpu.run.options import RunOptions

MODEL = trained_run()
TRAIN = [CLASSES[index % 3] for index in range(48)]
TEST = [CLASSES[index % 3] for index in range(21)]
AVERAGED = FinetuneOptimizerConfig(base_learning_rate=1e-2, average_decay=0.9)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A run that begins with the small pre-trained model."""
    folder = tmp_path_factory.mktemp("data")
    train, test = (
        write_labelled(folder, name, labels, seed=seed)
        for seed, (name, labels) in enumerate({"train": TRAIN, "test": TEST}.items())
    )
    data = of_data(train, test, optimizer=AVERAGED)
    small = dataclasses.replace(PRETRAINED.data, image_size=16)
    return settings_of(data, dataclasses.replace(PRETRAINED, data=small))


@pytest.fixture(scope="module")
def workdir(config, tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert finetune(config, folder, MODEL) == 6
    return folder


def losses(folder):
    return [
        {name: value for name, value in line.items() if not name.startswith("time/")}
        for line in read_metrics(folder)
    ]


def test_network_and_normalisation_are_those_of_the_model(config):
    assert config.model.encoder == PRETRAINED.model.encoder
    assert (config.model.vocab_size, config.model.decoder.num_layers) == (0, 0)
    assert config.data.image_mean == PRETRAINED.data.image_mean
    other = dataclasses.replace(CONFIG, model=CONFIG.model)
    with pytest.raises(UserError, match=r"model.encoder.num_layers is decided by --model = x"):
        require_same_network(other, config.model, "x")


def test_a_run_begins_with_the_encoder_and_a_head_near_zero(config):
    objective = running.finetuning(
        dataclasses.replace(config, classes=CLASSES), encoder_weights(MODEL)
    )
    from m3ae_tpu.parallel.mesh import make_mesh
    from m3ae_tpu.train.program import make_program

    state = make_program(
        dataclasses.replace(config, classes=CLASSES), objective, make_mesh()
    ).init()
    stored = named_arrays(MODEL.model)
    for name, leaf in named_arrays(state.model.m3ae).items():
        np.testing.assert_array_equal(leaf, stored[name])
    average = state.optimizer_state[1][1].average
    for ours, theirs in zip(jax.tree.leaves(average), jax.tree.leaves(state.model), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert np.abs(state.model.class_head.kernel).max() < 1e-3


def test_all_test_examples_are_scored_and_the_average_too(workdir):
    lines = losses(workdir)
    scored = [line["step"] for line in lines if "finetune/accuracy" in line]
    assert scored == [2, 4, 6]
    last = lines[-1]
    assert last["finetune/examples"] == len(TEST)
    assert last["finetune/accuracy"] * len(TEST) == pytest.approx(
        round(last["finetune/accuracy"] * len(TEST))
    )
    assert 0 <= last["finetune/average/accuracy"] <= 1
    assert last["finetune/average/loss"] != last["finetune/loss"]
    assert "finetune/top5_accuracy" not in last


def test_a_run_that_was_stopped_goes_on_bit_for_bit(config, workdir, tmp_path, monkeypatch):
    from m3ae_tpu.run.metrics import MetricsWriter

    write = MetricsWriter.write

    def write_and_fail(self, step, line):
        write(self, step, line)
        if step == 5:
            raise RuntimeError("stopped by the test")

    monkeypatch.setattr(MetricsWriter, "write", write_and_fail)
    with pytest.raises(RuntimeError, match="stopped by the test"):
        finetune(config, tmp_path / "run", MODEL)
    monkeypatch.undo()
    assert finetune(config, tmp_path / "run", MODEL) == 6
    assert losses(tmp_path / "run") == losses(workdir)
    ours, theirs = (CheckpointReader(folder).read(6) for folder in (tmp_path / "run", workdir))
    for item in ("model", "optimizer"):
        for name, array in getattr(ours, item).items():
            np.testing.assert_array_equal(array, getattr(theirs, item)[name])


def test_a_run_goes_on_only_with_the_model_that_it_began_with(config, workdir):
    with pytest.raises(UserError, match=r"--model has other weights \(SHA-256 none, from scratch"):
        finetune(config, workdir)


def test_a_step_is_run_again(config, workdir):
    assert finetune(config, workdir, MODEL, RunOptions(replay_step=3)) == 6
    replayed = np.load(workdir / "replay-3.npz")
    logged = next(line for line in read_metrics(workdir) if line["step"] == 3)
    assert replayed["step/loss"] == pytest.approx(logged["train/loss"])
    assert replayed["image/batch/labels"].shape == (16,)
    (workdir / "replay-3.npz").unlink()


def test_the_encoder_of_a_run_serves_as_a_model(config, workdir):
    loaded = load_pretrained(workdir)
    assert isinstance(loaded.config, PretrainConfig)
    assert loaded.config == load_config(workdir)
    assert loaded.config.data.image_size == 16
    assert loaded.task.has_images
    assert not loaded.task.has_texts
    stored = CheckpointReader(workdir).read(6).model
    for name, leaf in named_arrays(loaded.model).items():
        np.testing.assert_array_equal(leaf, stored[f"m3ae.{name}"])
    features = loaded.encode(images=[np.zeros((16, 16, 3), np.uint8)])
    assert features.image_mean is not None
    assert features.image_mean.shape == (1, 16)


def test_predictions_agree_with_the_accuracy_of_the_run(config, workdir, capsys):
    path = predict_workdir(workdir, config.evaluation.shards)
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [row["id"] for row in rows] == [str(index) for index in range(len(TEST))]
    assert [row["class"] for row in rows] == TEST
    accuracy = np.mean([row["class"] == row["predicted"] for row in rows])
    assert accuracy == pytest.approx(losses(workdir)[-1]["finetune/accuracy"])
    assert all(1 / 3 <= float(row["probability"]) <= 1 for row in rows)
    assert f"21 images classified by step 6, 0 left out\naccuracy: {accuracy:.4f}" in (
        capsys.readouterr().out
    )


def test_the_names_of_the_classes_are_stored(workdir):
    assert json.loads((workdir / "config.json").read_text())["classes"] == list(CLASSES)


def test_models_and_folders_that_cannot_serve_are_refused(config, tmp_path):
    texts = trained_run(with_source("text"))
    with pytest.raises(UserError, match="has learned from texts only"):
        encoder_weights(texts)
    save_run(tmp_path / "run", MODEL)
    with pytest.raises(UserError, match=r"does not hold a run of pipelines\.finetune"):
        predict_workdir(tmp_path / "run", "starter/heldout-*")
