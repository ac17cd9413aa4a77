"""Guards the evaluation on a user's own labelled sets: what they lack is left out with a word."""

import dataclasses
import re

import pytest
from labelled_sets import write_labelled
from small_run import CONFIG, trained_run, without_decoder

from m3ae_tpu.data.labelled import read_labelled
from m3ae_tpu.data.shards import open_shards
from m3ae_tpu.data.sources import open_data
from m3ae_tpu.errors import UserError
from m3ae_tpu.evaluation import caption_probes, evaluate, image_probes
from m3ae_tpu.evaluation.evaluate import all_rows, evaluate_run, print_figures
from m3ae_tpu.evaluation.running_probe import read_probe_examples

TWO = ["cat", "dog"]
RUN = trained_run()
DATA = open_data(CONFIG.data, batch_size=CONFIG.batch_size, seed=0, vocab_size=4_000)


def evaluated(train, test):
    return evaluate_run(RUN, [].append, train_shards=train, test_shards=test)


def captions_of(labels):
    return [f"a {label} sits here" for label in labels]


def rows_of(figures):
    return {row.title: row for row in all_rows(figures) if row.level != "detail"}


def test_records_without_a_group_are_groups_of_their_own(tmp_path):
    pattern = write_labelled(tmp_path, "train", "abcd", groups=["", "z", "", "z"])
    groups = read_labelled(open_shards(pattern), image_size=16).groups
    assert groups[1] == groups[3]
    assert len(set(groups.tolist())) == 3


def test_a_folder_of_classes_without_captions_is_evaluated(tmp_path, capsys):
    train = write_labelled(tmp_path, "train", TWO * 10)
    test = write_labelled(tmp_path, "test", TWO * 5, seed=1)
    figures = evaluated(train, test)
    assert {"linear_probe/pretrained", "knn/pretrained", "heldout/image_loss"} <= figures.keys()
    assert (figures["examples/folds"], figures["examples/test_seen_in_train"]) == (5, 0)
    assert figures["examples/test_shards"] == test
    assert figures["examples/test_digest"] == open_shards(test).digest
    assert not [name for name in figures if "text" in name and not name.startswith("left_out/")]
    print_figures(figures)
    printed = capsys.readouterr().out
    titles = [f"Linear probe, {noun}" for noun in ("images with captions", "captions alone")]
    for title in (*titles, "Hidden words predicted right"):
        row = rows_of(figures)[title]
        assert row.values == {}
        assert "hold no caption" in row.note
    assert printed.count("left out") == 3


def test_captions_count_where_they_are(tmp_path, capsys):
    train_labels, test_labels = TWO * 10, TWO * 5
    some = [caption if index % 3 else "" for index, caption in enumerate(captions_of(train_labels))]
    few = captions_of(test_labels[:4]) + [""] * 6
    train = write_labelled(tmp_path, "train", train_labels, captions=some)
    test = write_labelled(tmp_path, "test", test_labels, captions=few, seed=1)
    figures = evaluated(train, test)
    counts = ("examples/train_with_captions", "examples/test_with_captions")
    assert [figures[name] for name in counts] == [13, 4]
    assert figures["linear_probe_image_and_text/bag_of_words"] == 1
    assert rows_of(figures)["Linear probe, images with captions"].num_examples == 4
    print_figures(figures)
    printed = " ".join(capsys.readouterr().out.split())
    assert "13 of 20 training and 4 of 10 test examples have captions" in printed


@pytest.mark.parametrize(
    ("labels", "groups", "reason"),
    [
        (["cat"] * 10, None, "a single class, cat"),
        (["cat"], None, "a single class, cat"),
        (TWO, None, r"too little for cross-validation \(examples: 2, classes: 2"),
        (TWO * 5, ["one"] * 10, "near-duplicate groups: 1"),
        ([f"class {n}" for n in range(9)], None, "classes: 9"),
    ],
)
def test_sets_too_small_for_probes_are_said_to_be(tmp_path, labels, groups, reason, monkeypatch):
    for module in (image_probes, caption_probes):
        monkeypatch.setattr(module, "RowMap", None)  # No features are computed in vain.
    monkeypatch.setattr(evaluate, "EVALUATIONS", (image_probes, caption_probes))
    train = write_labelled(tmp_path, "train", labels, captions=captions_of(labels), groups=groups)
    rows = rows_of(evaluated(train, train))
    assert len(rows) == 4
    for row in rows.values():
        assert row.values == {}
        assert train in row.note
        assert re.search(reason, row.note)
    probe = dataclasses.replace(CONFIG.probe, train_shards=train, every_steps=1)
    with pytest.raises(UserError, match=rf"{reason}(?s:.*)--probe\.every_steps=0"):
        read_probe_examples(probe, DATA)


def test_three_examples_are_evaluated_even_on_themselves(tmp_path, capsys):
    labels, captions = ["cat", "cat", "dog"], ["one", "two", "three"]
    train = write_labelled(tmp_path, "train", labels, captions=captions)
    figures = evaluated(train, train)
    assert (figures["examples/folds"], figures["knn/num_neighbors"]) == (1, 2)
    rows = rows_of(figures)
    assert "2 nearest neighbours, images" in rows
    shared = ["pretrained", "untrained", "random projection"]
    assert [*rows["Linear probe, images"].values] == [*shared, "raw pixels"]
    for noun in ("images with captions", "captions alone"):
        row = rows[f"Linear probe, {noun}"]
        assert [*row.values] == [*shared, "bag of pieces"]
        assert "no word occurs in two training captions" in row.note
    print_figures(figures)
    assert "3 of 3 test images are training images too" in capsys.readouterr().out


def test_the_probe_in_training_says_how_to_read_more(tmp_path):
    train = write_labelled(tmp_path, "train", ["cat"] * 60 + ["dog"] * 60)
    probe = dataclasses.replace(CONFIG.probe, train_shards=train, max_examples=50, every_steps=1)
    with pytest.raises(UserError, match=r"first 50 of 120 records .*--probe\.max_examples=120"):
        read_probe_examples(probe, DATA)


def test_the_probe_in_training_needs_no_folds_beside_a_test_set(tmp_path):
    train = write_labelled(tmp_path, "train", TWO)
    test = write_labelled(tmp_path, "test", ["cat"], seed=1)
    probe = dataclasses.replace(CONFIG.probe, train_shards=train, test_shards=test, every_steps=1)
    assert [len(examples) for examples in read_probe_examples(probe, DATA)] == [2, 1]


def test_an_encoder_without_a_decoder_is_evaluated_without_reconstruction(tmp_path, capsys):
    train = write_labelled(tmp_path, "train", TWO * 10, captions=captions_of(TWO * 10))
    test = write_labelled(tmp_path, "test", TWO * 5, seed=1, captions=captions_of(TWO * 5))
    alone = trained_run(without_decoder())
    figures = evaluate_run(alone, [].append, train_shards=train, test_shards=test)
    assert not [name for name in figures if name.startswith("heldout/")]
    for title in ("Error at hidden patches", "Hidden words predicted right"):
        assert rows_of(figures)[title].note.startswith("The model is an encoder without a decoder")
    print_figures(figures)
    assert capsys.readouterr().out.count("left out") == 2
