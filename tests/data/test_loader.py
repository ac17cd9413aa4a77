"""The loader: a batch is a function of config, seed and step, and of nothing else."""

import dataclasses
import io
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from m3ae_tpu.batch import Source, batch_shapes
from m3ae_tpu.config import DataConfig, SourceConfig
from m3ae_tpu.data.images import CROP_DRAWS, decode_image, random_resized_crop
from m3ae_tpu.data.mixture import Plan
from m3ae_tpu.data.prefetch import Prefetcher
from m3ae_tpu.data.records import Record
from m3ae_tpu.data.rows import DrawRows
from m3ae_tpu.data.shards import open_shards, write_shards
from m3ae_tpu.data.sources import OpenData, differences, open_data
from m3ae_tpu.data.text import Tokenizer
from m3ae_tpu.errors import DataError, UserError

TOKENIZER = Tokenizer("starter/tokenizer.model")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """24 pairs, 10 images and 15 texts of the starter set."""
    folder = tmp_path_factory.mktemp("shards")
    for name, pattern, n in (
        ("pairs", "train", 24),
        ("images", "images", 10),
        ("texts", "texts", 15),
    ):
        shards = open_shards(f"starter/{pattern}-*")
        write_shards(folder, name, [shards[index] for index in range(n)], num_shards=2)
    return folder


def data_of(folder: pathlib.Path, *, batch_size: int = 12, seed: int = 0, **options) -> OpenData:
    """Batches of 12: 6 pairs of two sources, 2 images, 4 texts."""
    sources = (
        SourceConfig(shards=f"{folder}/pairs-*", weight=4.0, text_length=32),
        SourceConfig(kind="image", shards=f"{folder}/images-*", weight=2.0),
        SourceConfig(kind="text", shards=f"{folder}/texts-*", weight=4.0, text_length=8),
        SourceConfig(shards=f"{folder}/pairs-00000*", weight=2.0, text_length=32),
    )
    config = DataConfig(**{"sources": sources, "image_size": 16, "num_workers": 0} | options)
    return open_data(config, batch_size=batch_size, seed=seed, vocab_size=4_000)


def pairs_of(folder: pathlib.Path, *, batch_size: int = 8, **options) -> OpenData:
    sources = (SourceConfig(shards=f"{folder}/pairs-*", text_length=32),)
    return data_of(folder, sources=sources, batch_size=batch_size, **options)


def assert_equal(got, expected):
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, got, expected)


def test_a_batch_has_the_rows_of_each_kind(folder):
    data = data_of(folder)
    batch, info = data.loader().batch_at(0)
    got = jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), batch)
    assert got == batch_shapes(data.sources, image_size=16)
    assert {kind: len(info.ids[kind]) for kind in batch} == {"paired": 6, "image": 2, "text": 4}
    # Definitions are longer than eight tokens.
    assert info.counts == {"data/truncated_texts/paired": 0, "data/truncated_texts/text": 4}


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
        data_of(folder).loader(process_index=index, process_count=process_count)
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


def test_what_a_step_holds_stays_what_it_was_in_earlier_versions():
    # Where it must change, DRAWS_VERSION goes up.
    sources = [
        Source("paired", 3, SourceConfig()),
        Source("image", 2, SourceConfig(kind="image")),
    ]
    rows = DrawRows(Plan(sources), [range(1000), range(10, 60)], seed=7)(400)
    assert [(row.source, row.record) for row in rows] == [
        (0, 914),
        (0, 42),
        (0, 639),
        (1, 16),
        (1, 54),
    ]
    np.testing.assert_allclose(
        [row.flip_draw for row in rows], [0.9789, 0.5193, 0.3237, 0.7741, 0.7251], atol=1e-4
    )
    crops = [row.crop_draws[0, 0] for row in rows]
    np.testing.assert_allclose(crops, [0.4524, 0.3909, 0.1492, 0.8161, 0.3192], atol=1e-4)


def numbered(n: int) -> list[Record]:
    """Records that can be told from their caption and, by brightness, from their image."""
    records = []
    for index in range(n):
        file = io.BytesIO()
        Image.new("RGB", (20, 20), (10 * index,) * 3).save(file, "PNG")
        records.append(Record(id=str(index), image=file.getvalue(), captions=(f"number {index}",)))
    return records


def test_splits_of_the_same_shards_share_no_record(tmp_path):
    write_shards(tmp_path, "pairs", numbered(24))
    shards, apart = f"{tmp_path}/pairs-*", (0.25, 1.0)
    sources = (
        SourceConfig(shards=shards, weight=6.0, text_length=32, split=(0.0, 0.25)),
        SourceConfig(kind="image", shards=shards, weight=18.0, split=apart),
        SourceConfig(kind="text", shards=shards, weight=18.0, text_length=32, split=apart),
    )
    data = data_of(tmp_path, sources=sources, batch_size=42)
    batch = data.loader().batch_at(0)[0]
    seen = {
        kind: sorted(round(float(image.mean()) / 10) for image in batch[kind].images)
        for kind in ("paired", "image")
    }
    assert seen == {"paired": list(range(6)), "image": list(range(6, 24))}
    read = {
        kind: {TOKENIZER.decode(text) for text in batch[kind].text_ids}
        for kind in ("paired", "text")
    }
    assert read["paired"] == {f"number {index}" for index in range(6)}
    assert read["text"] == {f"number {index}" for index in range(6, 24)}
    assert data.num_records == (6, 18, 18)
    assert [source["records"] for source in data.fingerprint()["sources"]] == [6, 18, 18]


def test_a_split_without_a_record_is_refused(tmp_path):
    write_shards(tmp_path, "pairs", numbered(3))
    sources = (SourceConfig(shards=f"{tmp_path}/pairs-*", split=(0.4, 0.6)),)
    with pytest.raises(
        UserError, match=r"split = \(0\.4, 0\.6\) of source .* holds none of its 3 records"
    ):
        data_of(tmp_path, sources=sources)


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


def test_kept_images_give_the_same_rows_as_decoding_anew(folder):
    loader = pairs_of(folder).loader()
    first = loader.batch_at(4)
    for step in range(6):
        loader.batch_at(step)
    assert_equal(loader.batch_at(4), first)


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


def test_a_fingerprint_tells_what_decides_the_order(folder, tmp_path):
    first = pairs_of(folder).fingerprint()
    assert first["tokenizer_sha256"] == TOKENIZER.sha256
    assert first["sources"][0]["rows"] == 8
    records = list(open_shards(f"{folder}/pairs-*"))
    write_shards(tmp_path, "pairs", records, num_shards=2)
    assert pairs_of(tmp_path).fingerprint() == first
    write_shards(tmp_path, "pairs", records[:-1], num_shards=2)
    assert differences(pairs_of(tmp_path).fingerprint(), first) == [
        "records of sources.0's pairs-00000-of-00002.array_record = 11 now, was 12"
    ]
    assert pairs_of(folder, seed=1).fingerprint() != first
    assert pairs_of(folder, batch_size=16).fingerprint() != first


def test_images_alone_need_no_tokenizer(folder):
    sources = (SourceConfig(kind="image", shards=f"{folder}/images-*"),)
    data = data_of(folder, sources=sources, tokenizer="no/such.model")
    batch, info = data.loader().batch_at(0)
    assert list(batch) == ["image"]
    assert info.counts == {}
    assert data.fingerprint()["tokenizer_sha256"] == ""


@pytest.mark.parametrize(
    ("kind", "name", "lacks"),
    [("paired", "texts", "images"), ("image", "texts", "images"), ("paired", "images", "captions")],
)
def test_shards_of_another_kind_are_refused(folder, kind, name, lacks):
    sources = (SourceConfig(kind=kind, shards=f"{folder}/{name}-*"),)
    with pytest.raises(
        UserError, match=rf"kind = '{kind}' of source .*{name}-\* needs {lacks}, but"
    ):
        data_of(folder, sources=sources)


def test_a_tokenizer_that_the_model_cannot_hold_is_refused(folder):
    config = pairs_of(folder).config
    with pytest.raises(
        UserError, match=r"model\.vocab_size = 1000 is too small .* --model\.vocab_size=4000"
    ):
        open_data(config, batch_size=8, seed=0, vocab_size=1000)


def test_sources_of_one_kind_must_share_a_text_length(folder):
    sources = tuple(
        SourceConfig(shards=f"{folder}/pairs-*", text_length=length) for length in (32, 16)
    )
    with pytest.raises(
        UserError, match=r"text_length = 16 of source .* differs from another 'paired' source's 32"
    ):
        data_of(folder, sources=sources)


def by_example() -> jax.sharding.NamedSharding:
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
    return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))


def test_prefetched_batches_lie_on_the_mesh_and_are_those_of_the_loader(folder):
    expected = data_of(folder).loader()
    batches = Prefetcher(data_of(folder).loader(start_step=2), by_example())
    for step in (2, 3, 4):
        batch, info = next(batches)
        assert all(array.sharding == by_example() for array in jax.tree.leaves(batch))
        assert_equal((jax.tree.map(np.asarray, batch), info), expected.batch_at(step))
    assert batches.wait_seconds > 0
    batches.close()
    with pytest.raises(RuntimeError, match="closed"):
        next(batches)


def test_an_error_of_the_loader_reaches_the_training_loop_and_stays(tmp_path):
    write_shards(tmp_path, "pairs", [Record(id="a", image=b"no image", captions=("a",))])
    batches = Prefetcher(pairs_of(tmp_path).loader(), by_example())
    for _ in range(2):
        with pytest.raises(
            DataError, match="record 0 is broken, and so are all 0 records after it"
        ):
            next(batches)
    batches.close()
