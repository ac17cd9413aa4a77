"""Guards the model of the package: its files, features, scores, and the README's figures of it."""

import json
import re

import numpy as np
import pytest
from repository import ROOT

import m3ae_tpu
from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.config.tree import differences, leaves
from m3ae_tpu.data.shards import open_shards
from m3ae_tpu.evaluation.evaluate import evaluate_run
from m3ae_tpu.files import file_sha256
from m3ae_tpu.overrides import load_named_config, override
from m3ae_tpu.pretrained.loading import load_config
from m3ae_tpu.run.shipped import STARTER_MODEL
from m3ae_tpu.weights.starter_model import known_features

MANIFEST = json.loads((STARTER_MODEL / "manifest.json").read_text())
FIGURES = json.loads((STARTER_MODEL / "evaluation.json").read_text())
README = (ROOT / "README.md").read_text()
IN_README = (
    "linear_probe/pretrained",
    "linear_probe/untrained",
    "linear_probe/raw_pixels",
    "knn/pretrained",
    "knn/untrained",
    "knn/raw_pixels",
    "linear_probe_image_and_text/pretrained",
    "linear_probe_image_and_text/untrained",
    "linear_probe_text/pretrained",
    "linear_probe_text/untrained",
    "linear_probe_text/random_projection",
    "linear_probe_text/bag_of_pieces",
    "linear_probe_text/bag_of_words",
)
"""Figures in the order of the README's table."""
MOST_BYTES = 5_000_000
"""Every user downloads the model with the package."""


@pytest.fixture(scope="module")
def model():
    return m3ae_tpu.load("starter")


def test_the_files_are_whole_and_small():
    digests = {name: file_sha256(STARTER_MODEL / name) for name in MANIFEST["sha256"]}
    assert digests == MANIFEST["sha256"]
    assert sum(path.stat().st_size for path in STARTER_MODEL.iterdir()) < MOST_BYTES


def test_it_is_a_run_of_its_named_config():
    named = load_named_config(MANIFEST["config"], PretrainConfig)
    config = override(named, MANIFEST["changes"])
    changed = differences(now=leaves(config), was=leaves(load_config(STARTER_MODEL)))
    assert changed == {}
    assert MANIFEST["steps"] == config.num_steps
    assert not MANIFEST["commit"].endswith("-dirty")


def test_its_features_are_those_that_were_measured(model):
    assert model.digest == MANIFEST["parameters_sha256"]
    shards = open_shards(MANIFEST["features"]["shards"])
    wanted = MANIFEST["features"]["values"]
    found = known_features(model, [shards[index] for index in range(len(wanted["cls"]))])
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, atol=2e-3)


def test_it_fills_in_better_than_the_mean_colour(model):
    shards = open_shards("starter/heldout-*")
    rows = model.rows(images=[shards[index].image for index in range(16)])
    filled = model.reconstruct(images=rows.images)
    is_hidden = filled.masked_images[..., 3] == 0
    assert is_hidden.mean() == 0.75
    images, guesses = rows.images.astype(float), filled.images.astype(float)
    means = np.stack(
        [image[~hidden].mean(axis=0) for image, hidden in zip(images, is_hidden, strict=True)]
    )
    error = ((guesses - images) ** 2)[is_hidden].mean()
    assert error < 0.6 * ((means[:, None, None] - images) ** 2)[is_hidden].mean()


def test_it_fills_in_words(model):
    filled = model.reconstruct(texts=["A drawing of a red apple."], text_mask_ratio=0.3)
    assert "_" in filled.masked_texts[0]
    assert "_" not in filled.texts[0]


def test_the_readme_has_its_figures():
    table = re.findall(r"^\| ([^|]+) \|[^|]+\| ([^|]+) \|$", README, re.MULTILINE)
    shown = [value for _, value in table if value[0].isdigit()]
    assert shown == [f"{FIGURES[name]:.3f}" for name in IN_README]


@pytest.mark.long
def test_its_scores_are_those_that_were_measured(model):
    figures = evaluate_run(model, [].append)
    for name, wanted in FIGURES.items():
        # Another processor rounds otherwise, and a probe's choices between equals with it.
        if name.startswith("heldout/"):
            assert figures[name] == pytest.approx(wanted, rel=0.02, abs=0.003), name
        if name.startswith("poolings/"):
            assert figures[name] == pytest.approx(wanted, abs=0.04), name
