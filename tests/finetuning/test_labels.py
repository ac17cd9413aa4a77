"""Guards the classes of a run: their names, and that every image keeps its own."""

import collections
import dataclasses
import io
import json

import numpy as np
import pytest
from labelled_sets import write_labelled
from PIL import Image
from small_classifier import CLASSES, of_data

from m3ae_tpu.config.checks import FieldError
from m3ae_tpu.data.labelling import Labelling, count_classes
from m3ae_tpu.data.records import Record
from m3ae_tpu.data.shards import open_shards, write_shards
from m3ae_tpu.data.sources import open_data
from m3ae_tpu.errors import DataError, UserError
from m3ae_tpu.finetuning.labelled_stream import LabelledStream
from m3ae_tpu.finetuning.run import labelling_of
from m3ae_tpu.finetuning.start import require_known_classes, with_classes
from m3ae_tpu.parallel.mesh import make_mesh

LABELS = ["dog", "cat", "fox"] * 14


def write_coloured(folder, name="train", broken=()):
    """Writes images whose brightness tells their class, and returns their pattern."""
    records = []
    for index, label in enumerate(LABELS):
        file = io.BytesIO()
        Image.new("RGB", (20, 20), (40 * (1 + CLASSES.index(label)),) * 3).save(file, "PNG")
        image = b"no image" if index in broken else file.getvalue()
        records.append(Record(id=str(index), image=image, label_name=label))
    write_shards(folder, name, records)
    return f"{folder}/{name}-*"


def data_of(pattern, **changes):
    config = of_data(pattern)
    config = dataclasses.replace(config, **changes)
    opened = open_data(config.data, batch_size=config.batch_size, seed=0, vocab_size=0)
    config = with_classes(config, opened.shards)
    return config, dataclasses.replace(opened, labelling=labelling_of(config))


def test_every_image_keeps_its_class_through_shuffling_and_broken_records(tmp_path):
    config, data = data_of(write_coloured(tmp_path, broken=[3, 20]))
    data = dataclasses.replace(data, labelling=Labelling(classes=config.classes))
    assert config.classes == CLASSES
    for step in range(6):
        rows = data.loader().batch_at(step)[0]["image"]
        np.testing.assert_array_equal(rows.images[:, 8, 8, 0], 40 * (1 + rows.labels))


def test_augmented_batches_are_the_same_from_any_worker_and_differ_by_epoch(tmp_path):
    _, data = data_of(write_labelled(tmp_path, "train", LABELS))
    once, again = (data.loader().batch_at(step)[0]["image"].images for step in (4, 4))
    np.testing.assert_array_equal(once, again)
    parts = [
        data.loader(parts=(part,), num_parts=2).batch_at(4)[0]["image"].images for part in (0, 1)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), once)
    plain = dataclasses.replace(data, labelling=Labelling(classes=CLASSES))
    assert (plain.loader().batch_at(4)[0]["image"].images != once).any(axis=(1, 2, 3)).sum() > 4


def test_classes_come_from_the_manifest_where_it_counts_all_shards(tmp_path):
    shards = open_shards(write_labelled(tmp_path, "train", LABELS))
    assert count_classes(shards) == {"cat": 14, "dog": 14, "fox": 14}
    names = [path.rpartition("/")[2] for path in shards.paths]
    manifest = {"classes": {"owl": 1, "bat": 2}, "shards": {name: {} for name in names}}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert count_classes(shards) == {"bat": 2, "owl": 1}
    manifest["shards"]["train-00001-of-00002.array_record"] = {}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    assert count_classes(shards) == {"cat": 14, "dog": 14, "fox": 14}


def test_what_no_classifier_can_learn_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match=r"record without a class .*prepare_data --kind=labelled"):
        data_of(write_labelled(tmp_path, "bare", ["cat", ""]))
    with pytest.raises(UserError, match=r"hold a single class, cat, and a classifier"):
        data_of(write_labelled(tmp_path, "one", ["cat"] * 20))
    pattern = write_labelled(tmp_path, "train", LABELS)
    with pytest.raises(UserError, match=r"hold the class fox, which is not among the run's 2"):
        data_of(pattern, classes=("cat", "dog"))
    config, _ = data_of(pattern)
    odd = open_shards(write_labelled(tmp_path, "odd", ["cat", "owl", "yak"]))
    with pytest.raises(UserError, match=r"odd-\* hold the class owl \(and 1 more\), which is not"):
        require_known_classes(config, odd)
    config, _ = data_of(pattern, classes=("fox", "dog", "cat"))
    assert config.classes == ("fox", "dog", "cat")


def test_a_class_that_the_manifest_hid_ends_in_a_message_that_names_the_record(tmp_path):
    _, data = data_of(write_labelled(tmp_path, "train", LABELS))
    data = dataclasses.replace(data, labelling=Labelling(classes=("cat", "dog")))
    with pytest.raises(DataError, match=r"record \d+ cannot be used .*its class fox is not among"):
        data.loader().batch_at(0)


@pytest.mark.parametrize("count", [1, 700])
def test_every_test_example_is_counted_once(tmp_path, count):
    labels = [CLASSES[index % 3] for index in range(count)]
    shards = open_shards(write_labelled(tmp_path, "test", labels))
    stream = LabelledStream(shards, range(count), classes=CLASSES, image_size=16, mesh=make_mesh())
    for _ in range(2):
        ids, found = [], []
        for batch in stream:
            is_counted = np.asarray(batch.is_counted)
            ids += np.array(batch.ids)[is_counted].tolist()
            found += np.asarray(batch.labels)[is_counted].tolist()
        assert ids == [str(index) for index in range(count)]
        assert found == [index % 3 for index in range(count)]


def test_broken_test_images_are_named_and_left_out(tmp_path, caplog):
    shards = open_shards(write_coloured(tmp_path, broken=[3, 20]))
    stream = LabelledStream(
        shards, range(len(shards)), classes=CLASSES, image_size=16, mesh=make_mesh()
    )
    with caplog.at_level("WARNING", logger="m3ae_tpu"):
        counted = sum(int(np.asarray(batch.is_counted).sum()) for batch in stream)
    assert counted == len(LABELS) - 2
    named = collections.Counter("record 3 is left out" in text for text in caplog.messages)
    assert (named[True], len(caplog.messages)) == (1, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"classes": ("cat",)}, "classes = .* is a single class"),
        ({"classes": ("cat", "cat")}, "classes = .* names a class twice"),
        ({"drop_path": 1.0}, r"drop_path = 1.0 is not in \[0, 1\)"),
        (
            {"image_mask_ratio": 0.9},
            "image_mask_ratio = 0.9 hides all of an image.s 4 patches. Set a smaller one.",
        ),
        ({"batch_size": 15}, "batch_size = 15 is not a multiple of 2, and mixup and cutmix pair"),
    ],
)
def test_fields_that_cannot_work_are_refused(changes, message):
    with pytest.raises(FieldError, match=message):
        dataclasses.replace(of_data("starter/train-*"), **changes)
