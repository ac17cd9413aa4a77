"""Guards labelled examples: fields of one record stay together, train and test share classes."""

import numpy as np
import pytest

from m3ae_tpu.data.crops import resize_and_crop_center
from m3ae_tpu.data.images import decode_image
from m3ae_tpu.data.labelled import read_labelled
from m3ae_tpu.data.records import Record
from m3ae_tpu.data.shards import open_shards, write_shards
from m3ae_tpu.data.text import Tokenizer
from m3ae_tpu.errors import UserError

TOKENIZER = Tokenizer("starter/tokenizer.model")


def read(pattern: str = "starter/heldout-*", **options):
    shards = open_shards(pattern)
    return read_labelled(
        shards, **{"image_size": 24, "tokenizer": TOKENIZER, "text_length": 16} | options
    )


def test_fields_are_those_of_the_records_in_order():
    shards, examples = open_shards("starter/heldout-*"), read(indices=range(20))
    for index in range(20):
        record = shards[index]
        assert examples.titles[index] == record.title
        assert examples.label_names[examples.labels[index]] == record.label_name
        assert examples.captions[index] == record.captions[0]
        ids, is_valid, _ = TOKENIZER.encode(record.captions[:1], 16)
        np.testing.assert_array_equal(examples.text_ids[index], ids[0])
        np.testing.assert_array_equal(examples.is_valid[index], is_valid[0])
        image = resize_and_crop_center(decode_image(record.image), 24)
        np.testing.assert_array_equal(examples.images[index], image)


def test_classes_are_sorted_and_can_be_given():
    assert read(indices=range(40)).label_names == tuple(sorted(read(indices=range(40)).label_names))
    names = ("z", *sorted({record.label_name for record in open_shards("starter/heldout-*")}))
    examples = read(indices=range(3), label_names=names)
    assert examples.label_names == names
    assert examples.labels.min() > 0


def test_a_class_that_train_lacks_is_refused():
    with pytest.raises(
        UserError, match=r"hold the label .* not among the 1 classes of the training examples"
    ):
        read(indices=range(20), label_names=("flags",))


def test_shards_without_labels_are_refused():
    with pytest.raises(UserError, match=r"starter/images-\* hold a record without label or image"):
        read("starter/images-*")


def test_an_image_that_cannot_be_decoded_is_named(tmp_path):
    records = [Record(id="a", image=b"<html>gone</html>", label_name="cat")]
    write_shards(tmp_path, "broken", records)
    with pytest.raises(
        UserError, match=r"broken-.*, record \d+ holds.* cannot be decoded .* shards again"
    ):
        read(f"{tmp_path}/broken-*", tokenizer=None)


def test_without_a_tokenizer_all_tokens_are_padding():
    examples = read(indices=range(3), tokenizer=None)
    assert examples.text_ids.shape == (3, 16)
    assert not examples.is_valid.any()
