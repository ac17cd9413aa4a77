"""Guards batches: functions of config, seed and step, and of nothing else."""

import dataclasses
import io

import jax
import numpy as np
import pytest
from PIL import Image
from small_sets import TOKENIZER, assert_equal, data_of, numbered, pairs_of

from m3ae_tpu.batch import batch_shapes
from m3ae_tpu.data.crops import CROP_DRAWS, random_resized_crop
from m3ae_tpu.data.images import decode_image
from m3ae_tpu.data.records import Record
from m3ae_tpu.data.shards import open_shards, write_shards


def test_a_batch_has_the_rows_of_each_kind(folder):
    data = data_of(folder)
    batch, info = data.loader().batch_at(0)
    got = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), batch)
    assert got == batch_shapes(data.sources, image_size=16)
    assert {kind: len(info.ids[kind]) for kind in batch} == {"paired": 6, "image": 2, "text": 4}
    # Definitions are longer than eight tokens.
    assert info.counts == {"data/truncated_texts/paired": 0, "data/truncated_texts/text": 4}


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # As in test_workers.
@pytest.mark.parametrize(("num_workers", "start_step"), [(0, 0), (0, 5), (2, 3)])
def test_neither_workers_nor_a_restart_change_a_bit(folder, num_workers, start_step):
    expected = data_of(folder).loader()
    loader = data_of(folder, num_workers=num_workers).loader(start_step=start_step)
    for step in range(start_step, start_step + 5):
        assert_equal(next(loader), expected.batch_at(step))
    loader.close()


@pytest.mark.parametrize("process_count", [2])
def test_the_rows_of_all_processes_are_the_batch_of_one(folder, process_count):
    whole = data_of(folder).loader()
    loaders = [
        data_of(folder).loader(parts=[index], num_parts=process_count)
        for index in range(process_count)
    ]
    for step in (0, 7):
        batches = [loader.batch_at(step)[0] for loader in loaders]
        assert_equal(
            jax.tree.map(lambda *rows: np.concatenate(rows), *batches), whole.batch_at(step)[0]
        )


def test_another_seed_gives_other_batches(folder):
    first = pairs_of(folder).loader().batch_at(0)[0]["paired"]
    other = pairs_of(folder, seed=1).loader().batch_at(0)[0]["paired"]
    assert np.any(first.text_ids != other.text_ids)
    assert np.any(first.images != other.images)


def test_every_record_comes_once_an_epoch_in_a_new_order_with_its_own_caption(tmp_path):
    write_shards(tmp_path, "pairs", numbered(24), num_shards=2)
    loader = pairs_of(tmp_path).loader()
    epochs = []
    for epoch in range(3):
        batches = [loader.batch_at(3 * epoch + step)[0]["paired"] for step in range(3)]
        seen = [round(float(image.mean()) / 10) for batch in batches for image in batch.images]
        read = [TOKENIZER.decode(text) for batch in batches for text in batch.text_ids]
        assert read == [f"number {index}" for index in seen]
        assert sorted(seen) == list(range(24))
        epochs.append(seen)
    assert epochs[0] != epochs[1] != epochs[2]


def test_captions_and_crops_change_from_epoch_to_epoch(tmp_path):
    record = dataclasses.replace(
        open_shards("starter/train-*")[0], captions=("one", "two", "three")
    )
    write_shards(tmp_path, "pairs", [record])
    loader = pairs_of(tmp_path, batch_size=1).loader()
    batches = [loader.batch_at(step)[0]["paired"] for step in range(40)]
    assert {TOKENIZER.decode(batch.text_ids[0]) for batch in batches} == {"one", "two", "three"}
    assert len({batch.images.tobytes() for batch in batches}) == 40


def test_pre_training_sees_image_and_captions_only(folder, tmp_path):
    records = list(open_shards(f"{folder}/pairs-*"))
    bare = [
        Record(id=str(n), image=record.image, captions=record.captions)
        for n, record in enumerate(records)
    ]
    write_shards(tmp_path, "pairs", bare, num_shards=2)
    for step in range(3):
        bare_batch, full_batch = (
            pairs_of(place).loader().batch_at(step)[0] for place in (tmp_path, folder)
        )
        assert_equal(bare_batch, full_batch)


@pytest.mark.parametrize(
    ("captions", "probability", "expected"),
    [
        (("A cat.",), 0.5, 0.5),
        (("A cat.",), 0.0, 0.0),
        (("A cat.",), 1.0, 1.0),
        (("A left arrow.",), 1.0, 0.0),
        (("A cat.", "A left arrow."), 1.0, 0.5),
    ],
)
def test_images_are_mirrored_unless_their_caption_would_be_false(
    tmp_path, captions, probability, expected
):
    record = dataclasses.replace(numbered(1)[0], captions=captions)
    write_shards(tmp_path, "pairs", [record])
    loader = pairs_of(tmp_path, batch_size=200, flip_probability=probability).loader()
    batch = loader.batch_at(0)[0]["paired"]
    is_mirrored = batch.is_flipped
    assert abs(is_mirrored.mean() - expected) < (0.12 if expected == 0.5 else 1e-9)
    if len(captions) == 2:
        is_cat = np.array([TOKENIZER.decode(text) == "A cat." for text in batch.text_ids])
        np.testing.assert_array_equal(is_mirrored, is_cat)


def test_cached_images_give_the_same_rows_as_decoding_again(folder):
    loader = pairs_of(folder).loader()
    first = loader.batch_at(4)
    for step in range(6):
        loader.batch_at(step)
    assert_equal(loader.batch_at(4), first)


def test_cached_jpegs_keep_their_pixels_when_others_are_decoded(tmp_path):
    def jpeg(shade: int) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (40, 40), (shade, shade, shade)).save(file, "JPEG")
        return file.getvalue()

    records = [
        dataclasses.replace(record, image=jpeg(20 * number))
        for number, record in enumerate(numbered(8))
    ]
    write_shards(tmp_path, "pairs", records)
    loader = pairs_of(tmp_path, batch_size=8).loader()
    for step in range(3):
        images = loader.batch_at(step)[0]["paired"].images
        assert sorted(int(image.mean()) for image in images) == [20 * n for n in range(8)]


def test_a_crop_is_that_of_the_decoded_image(tmp_path):
    record = open_shards("starter/train-*")[3]
    write_shards(tmp_path, "pairs", [record])
    data = pairs_of(
        tmp_path, batch_size=1, crop_area=(1.0, 1.0), flip_probability=0.0, image_size=96
    )
    # All of a square image: only crops of aspect ratio 1 fit, and the central one is left.
    got = data.loader().batch_at(0)[0]["paired"].images[0]
    expected = np.zeros((96, 96, 3), np.uint8)
    image = decode_image(record.image, "RGBX")
    random_resized_crop(image, expected, area=(1.0, 1.0), draws=np.zeros(CROP_DRAWS))
    assert got.shape == expected.shape
    assert np.abs(got.astype(int) - expected).mean() < 12
