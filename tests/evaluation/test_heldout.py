"""Guards the figures of the pre-training task on held-out examples."""

import dataclasses

import numpy as np
import pytest
from small_run import CONFIG, trained_run, with_source

from m3ae_tpu.config import LossConfig, MaskingConfig
from m3ae_tpu.data.labelled import LabelledExamples
from m3ae_tpu.data.text import Tokenizer
from m3ae_tpu.evaluation import heldout
from m3ae_tpu.pretrained.task import ReconstructionTask

RUN = trained_run()
TOKENIZER = Tokenizer(CONFIG.data.tokenizer)


@pytest.fixture(scope="module")
def examples():
    captions = "a red apple", "an image of a dog", "an old house", "two cats", "", "a tree", "a dog"
    text_ids, is_valid, _ = TOKENIZER.encode(captions, 8)
    return LabelledExamples(
        images=np.random.default_rng(2).integers(0, 256, (7, 32, 32, 3), np.uint8),
        text_ids=text_ids,
        is_valid=is_valid,
        labels=np.array([0, 1, 2, 1, 2, 0, 1], np.int32),
        label_names=("food", "animals", "objects"),
        titles=("red apple", "dog", "house", "cats", "", "tree", "dog"),
        groups=np.arange(7, dtype=np.int32),
        captions=captions,
    )


def figures_of(examples, config=CONFIG, **options):
    task = ReconstructionTask.of_run(config)
    return heldout.heldout_reconstruction(RUN.model, examples, task, RUN.mesh, **options)


def test_every_figure_is_there(examples):
    is_title = heldout.title_tokens(examples, TOKENIZER)
    figures = figures_of(examples, is_title=is_title)
    names = [
        f"{name}{suffix}"
        for suffix in ("", "_with_other_image")
        for name in ("text_loss", "text_accuracy", "title_accuracy")
    ]
    assert figures.keys() == {"image_loss", "image_loss_of_visible_mean", *names}


def test_examples_are_scored_the_same_beside_others(examples):
    first, second = examples.take(np.arange(3)), examples.take(np.arange(4))
    config = with_source("image")
    sums = [
        figures_of(each, config, num_draws=1)["image_loss"] * len(each) for each in (first, second)
    ]
    fourth = sums[1] - sums[0]
    assert fourth > 0.01
    swapped = examples.take(np.array([6, 5, 4, 3]))
    rest = figures_of(swapped.take(np.arange(3)), config, num_draws=1)["image_loss"] * 3
    whole = figures_of(swapped, config, num_draws=1)["image_loss"] * 4
    assert whole - rest == pytest.approx(fourth, rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "present", "absent"), [("image", "image_loss", "text"), ("text", "text_loss", "image")]
)
def test_runs_of_one_modality_have_its_figures_only(examples, kind, present, absent):
    figures = figures_of(examples, with_source(kind), num_draws=1)
    assert present in figures
    assert [name for name in figures if name.startswith(absent) or "other" in name] == []


def test_plain_images_are_predicted_exactly_by_their_visible_mean(examples):
    colours = np.random.default_rng(0).integers(0, 256, (7, 1, 1, 3), np.uint8)
    plain = dataclasses.replace(examples, images=np.broadcast_to(colours, (7, 32, 32, 3)).copy())
    figures = figures_of(plain, with_source("image"), num_draws=1)
    assert figures["image_loss_of_visible_mean"] == pytest.approx(0, abs=1e-9)
    assert figures["image_loss"] > 0.01


def test_the_baseline_is_measured_in_the_space_of_the_targets(examples):
    config = dataclasses.replace(with_source("image"), loss=LossConfig(norm_pix_loss=True))
    figures = figures_of(examples, config, num_draws=1)
    # Patches have mean 0 there, and a variance of 1 that divides by n - 1 for n = 8 * 8 * 3 values.
    assert figures["image_loss_of_visible_mean"] == pytest.approx(191 / 192, rel=1e-2)


def test_all_hidden_patches_are_scored_however_few_are_trained_on(examples):
    config = with_source("image")
    masking = dataclasses.replace(config.masking, image_predicted_share=0.5, draw="per_batch")
    few = dataclasses.replace(config, masking=masking)
    assert figures_of(examples, config, num_draws=1) == figures_of(examples, few, num_draws=1)


@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2], [2, 1, 0, 1, 2, 0], [0, 1]])
def test_the_other_image_is_of_another_class(labels):
    labels = np.array(labels, np.int32)
    others = heldout.other_rows(labels)
    assert sorted(others) == list(range(len(labels)))
    assert np.all(labels[others] != labels)


def test_the_other_image_is_not_the_same_one_even_in_a_single_class():
    others = heldout.other_rows(np.zeros(5, np.int32))
    assert sorted(others) == list(range(5))
    assert np.all(others != np.arange(5))


def test_one_example_has_figures_but_no_other_image(examples):
    figures = figures_of(examples.take(np.arange(1)), num_draws=1)
    assert {"image_loss", "text_loss"} <= figures.keys()
    assert [name for name in figures if "other" in name] == []


def test_a_figure_without_a_baseline_says_why():
    figures = {
        "heldout/image_loss": 0.5,
        "heldout/text_accuracy": 0.25,
        "left_out/heldout/visible_mean": "all patches are hidden",
        "left_out/heldout/other_image": "one example",
        "left_out/heldout/title_accuracy": "no title",
    }
    rows = {row.title: (dict(row.values), row.note) for row in heldout.rows(figures)}
    assert rows == {
        "Error at hidden patches": ({"pretrained": 0.5}, "all patches are hidden"),
        "Hidden words predicted right": ({"pretrained": 0.25}, "one example"),
        "Hidden words of titles predicted right": ({}, "no title"),
    }


def masked(image_mask_ratio, text_mask_ratio):
    masking = MaskingConfig(image_mask_ratio=image_mask_ratio, text_mask_ratio=text_mask_ratio)
    return dataclasses.replace(CONFIG, masking=masking)


def test_nothing_hidden_is_not_measured(examples):
    assert figures_of(examples, masked(0.0, 0.0), num_draws=1) == {}


def test_with_everything_hidden_only_the_visible_mean_is_missing(examples):
    figures = figures_of(examples, masked(1.0, 1.0), num_draws=1)
    assert {"image_loss", "text_loss", "text_accuracy"} <= figures.keys()
    assert "image_loss_of_visible_mean" not in figures
    assert all(np.isfinite(value) for value in figures.values())


def test_title_is_found_where_it_stands():
    text_ids = np.array([[5, 8, 9, 8, 9, 0], [1, 2, 3, 4, 5, 6]], np.int32)
    found = heldout.title_positions(text_ids, [[8, 9], [7]])
    np.testing.assert_array_equal(found, [[False, True, True, False, False, False], [False] * 6])
