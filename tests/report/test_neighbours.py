"""Guards the strips of neighbours: what is nearest, whose class agrees, and what a run lacks."""

import numpy as np
import pytest
from small_run import CONFIG, trained_run, with_source

from m3ae_tpu.data.labelled import LabelledExamples, read_labelled
from m3ae_tpu.data.shards import open_shards
from m3ae_tpu.data.text import Tokenizer
from m3ae_tpu.report import neighbours
from m3ae_tpu.report.neighbours import Neighbours, Strip, draw_queries, find_neighbours
from m3ae_tpu.report.strips import strips

SHARDS = "starter/heldout-*"


@pytest.fixture
def searched(monkeypatch):
    """The examples that are searched: few, to be fast."""
    monkeypatch.setattr(neighbours, "MOST_SEARCHED", 40)
    chosen = np.random.default_rng(neighbours.SEED).permutation(len(open_shards(SHARDS)))[:40]
    return read_labelled(
        open_shards(SHARDS),
        image_size=32,
        tokenizer=Tokenizer(CONFIG.data.tokenizer),
        text_length=8,
        indices=np.sort(chosen).tolist(),
    )


def examples(labels, captions):
    count = len(labels)
    return LabelledExamples(
        images=np.zeros((count, 8, 8, 3), np.uint8),
        text_ids=np.zeros((count, 4), np.int32),
        is_valid=np.zeros((count, 4), bool),
        labels=np.array(labels, np.int32),
        label_names=("<cat>", "dog"),
        titles=("",) * count,
        groups=np.arange(count, dtype=np.int32),
        captions=captions,
    )


def test_queries_are_drawn_from_each_class_in_turn():
    labels = np.array([0] * 50 + [1] * 3 + [2], np.int32)
    chosen = draw_queries(labels, 5, np.random.default_rng(1))
    assert sorted(labels[chosen[:3]]) == [0, 1, 2]
    assert sorted(labels[chosen[3:]]) == [0, 1]
    assert len(set(chosen.tolist())) == 5
    np.testing.assert_array_equal(chosen, draw_queries(labels, 5, np.random.default_rng(1)))
    assert len(draw_queries(labels[:2], 5, np.random.default_rng(1))) == 2


@pytest.mark.parametrize("kind", ["paired", "image", "text"])
def test_an_example_that_is_searched_is_nearest_to_itself(searched, kind):
    run = trained_run(CONFIG if kind == "paired" else with_source(kind))
    found = find_neighbours(run, searched, SHARDS, "cls_mean_max")
    assert (
        set(found.strips)
        == {
            "paired": {"image", "caption"},
            "image": {"image"},
            "text": {"caption"},
        }[kind]
    )
    assert len(found.searched) == 40
    for own, strips_of_kind in found.strips.items():
        assert len(strips_of_kind) == 8
        for strip in strips_of_kind:
            assert strip.agrees[0]
            nearest = strip.neighbours[0]
            if own == "image":
                np.testing.assert_array_equal(
                    found.searched.images[nearest], found.queries.images[strip.query]
                )
            else:
                np.testing.assert_array_equal(
                    found.searched.text_ids[nearest], found.queries.text_ids[strip.query]
                )
    page = strips(found)
    assert ("This run saw no images" in page) == (kind == "text")
    assert ("Neighbours of captions need" in page) == (kind == "image")


def test_agreement_is_marked_counted_and_compared_with_chance():
    found = Neighbours(
        queries=examples([0], ("a <b>",)),
        searched=examples([0, 1, 1, 1], ("x", "", "y", "z")),
        num_train=4_000,
        strips={
            "image": (Strip(query=0, neighbours=(1, 0, 2), agrees=(False, True, False)),),
            "caption": (),
        },
        pooling="mean of the patches",
    )
    assert found.chance("image") == pytest.approx(3 / 4)
    page = strips(found)
    assert page.count("✓") == page.count("neighbour agrees") == 1
    assert "1 of 3 neighbours are of the query" in page
    assert "the nearest of 4 of 4,000 training examples, drawn at random" in page
    assert "Neighbours of captions need" in page
    assert "&lt;cat&gt;" in page
    assert "<b>" not in page
    assert strips("no <shards>") == '<p class="missing">no &lt;shards&gt;</p>'
