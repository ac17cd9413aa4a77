"""Guards the evaluation of a whole run: every figure is there, whatever the devices."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest
from small_run import CONFIG, trained_run, with_source

from m3ae_tpu.data.shards import open_shards, write_shards
from m3ae_tpu.data.sources import open_data
from m3ae_tpu.evaluation import caption_probes, heldout, image_probes
from m3ae_tpu.evaluation.evaluate import all_rows, evaluate_run, print_figures
from m3ae_tpu.evaluation.running_probe import make_probe, read_probe_examples
from m3ae_tpu.parallel.mesh import make_mesh

WITHOUT_IMAGES = ("untrained", "random_projection", "bag_of_pieces", "bag_of_words")
HERE = pathlib.Path(__file__).parent
DATA = open_data(CONFIG.data, batch_size=CONFIG.batch_size, seed=0, vocab_size=4_000)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Returns patterns of small training and test shards, of the classes that have most records."""
    folder = tmp_path_factory.mktemp("shards")
    heldout_shards = open_shards("starter/heldout-*")
    records = [heldout_shards[index] for index in range(200)]
    names = [record.label_name for record in records]
    common = sorted(set(names), key=names.count)[-3:]
    records = [record for record in records if record.label_name in common]
    write_shards(folder, "train", records[:-30])
    write_shards(folder, "test", records[-30:])
    return f"{folder}/train-*", f"{folder}/test-*"


@pytest.fixture(scope="module")
def figures_and_stages(shards):
    """Evaluates a run on the suite's eight devices."""
    stages = []
    figures = evaluate_run(
        trained_run(), stages.append, train_shards=shards[0], test_shards=shards[1]
    )
    return figures, stages


def test_eight_devices_evaluate_like_one(shards, figures_and_stages):
    paths = [str(HERE.parent), str(HERE.parent.parent)]
    environment = {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        "PYTHONPATH": os.pathsep.join(paths),
    }
    program = subprocess.run(
        [sys.executable, HERE / "evaluate_on_devices.py", *shards],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    one, eight = json.loads(program.stdout.splitlines()[-1]), figures_and_stages[0]
    assert (one.pop("devices"), jax.device_count()) == (1, 8)
    assert one.keys() == eight.keys()
    for name, value in one.items():
        is_number = isinstance(value, float)
        assert eight[name] == (pytest.approx(value, abs=1e-6) if is_number else value), name


def test_every_figure_of_a_run_with_pairs_is_there(figures_and_stages, capsys):
    figures, stages = figures_and_stages
    names = {
        "linear_probe": ("pretrained", "untrained", "random_projection", "raw_pixels"),
        "knn": ("pretrained", "untrained", "random_projection", "raw_pixels"),
        "linear_probe_image_and_text": ("pretrained", *WITHOUT_IMAGES),
        "linear_probe_text": ("pretrained", *WITHOUT_IMAGES),
        "heldout": ("text_accuracy", "text_accuracy_with_other_image"),
    }
    accuracies = [f"{prefix}/{name}" for prefix, ends in names.items() for name in ends]
    for name in accuracies:
        assert 0 <= figures[name] <= 1, name
    assert {
        "linear_probe/pooling",
        "cross_validation/linear_probe/pretrained",
        "balanced/linear_probe/raw_pixels",
        "poolings/knn/pretrained/cls",
        "heldout/image_loss",
        "heldout/image_loss_of_visible_mean",
    } <= figures.keys()
    assert (figures["examples/test"], figures["run/step"]) == (30, 3)
    assert len(stages) > 5

    rows = all_rows(figures)
    headlines = [row.title for row in rows if row.level == "headline"]
    assert headlines == [
        "Linear probe, images",
        "Linear probe, images with captions",
        "Linear probe, captions alone",
        "Error at hidden patches",
        "Hidden words predicted right",
    ]
    print_figures(figures)
    printed = capsys.readouterr().out
    assert f"{figures['linear_probe/pretrained']:.3f}" in printed
    assert f"{figures['heldout/image_loss']:.3f}" in printed


def test_a_run_of_images_alone_has_their_figures_only(shards):
    run = dataclasses.replace(trained_run(), config=with_source("image"), tokenizer=None)
    figures = evaluate_run(run, [].append, train_shards=shards[0], test_shards=shards[1])
    assert {"linear_probe/pretrained", "heldout/image_loss"} <= figures.keys()
    assert [name for name in figures if "text" in name] == []


@pytest.mark.parametrize("evaluation", [image_probes, caption_probes, heldout])
def test_an_evaluation_that_was_not_made_has_no_rows(evaluation):
    assert evaluation.rows({"run/step": 3}) == []


def test_the_probe_in_training_learns_from_other_groups_than_it_is_scored_on(shards):
    probe = dataclasses.replace(CONFIG.probe, train_shards=shards[0], every_steps=1)
    train, test = read_probe_examples(probe, DATA)
    assert len(train) + len(test) == len(open_shards(shards[0]))
    assert set(train.groups) & set(test.groups) == set()


def test_the_probe_in_training_scores_a_model(shards):
    probe = dataclasses.replace(
        CONFIG.probe, train_shards=shards[0], test_shards=shards[1], every_steps=1
    )
    score = make_probe(probe, DATA, make_mesh())
    run = trained_run()
    assert 0 <= score(run.model)["probe/knn_accuracy"] <= 1
    assert score(run.model) == score(run.model)
