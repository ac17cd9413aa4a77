"""Guards broken records: good ones replace them, all are counted, many stop the run."""

import dataclasses
import io
import os
import pathlib

import jax
import msgpack
import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from m3ae_tpu.batch import Source
from m3ae_tpu.config import DataConfig, SourceConfig
from m3ae_tpu.data.broken import BrokenRecords, BrokenRow
from m3ae_tpu.data.loader import Loader
from m3ae_tpu.data.records import Record, encode_record
from m3ae_tpu.data.shards import DamagedRecordError, open_shards, write_shards
from m3ae_tpu.data.sources import open_data
from m3ae_tpu.errors import DataError, UserError


def png(brightness: int, size: tuple[int, int] = (12, 12), mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, (brightness,) * 3 if mode == "RGB" else 0).save(file, "PNG")
    return file.getvalue()


def good(index: int) -> Record:
    return Record(id=str(index), image=png(10 * index), captions=(f"number {index}",))


def broken(name: str) -> bytes:
    record = good(0)
    if name == "text_not_utf8":
        fields = {"version": 1, "id": "x", "image": png(0), "captions": [b"\xff\xfe"]}
        return msgpack.Packer(use_bin_type=False).pack(fields)
    return {
        "damaged_record": b"no record",
        "no_image": encode_record(dataclasses.replace(record, image=b"")),
        "image_size": encode_record(
            dataclasses.replace(record, image=png(0, (20_000, 10_000), "1"))
        ),
        "undecodable_image": encode_record(dataclasses.replace(record, image=png(0)[:50])),
        "no_caption": encode_record(dataclasses.replace(record, captions=("", " "))),
        "overlong_caption": encode_record(
            dataclasses.replace(record, captions=("word " * 20_000,))
        ),
    }[name]


def write_raw(folder: pathlib.Path, records: list[bytes]) -> pathlib.Path:
    path = folder / "pairs-00000-of-00001.array_record"
    writer = ArrayRecordWriter(str(path), "group_size:1")
    for record in records:
        writer.write(record)
    writer.close()
    return path


def loader_of(folder: pathlib.Path, *, batch_size: int = 10, num_workers: int = 0, **of) -> Loader:
    source = SourceConfig(shards=f"{folder}/pairs-*", text_length=8)
    config = DataConfig(sources=(source,), image_size=8, num_workers=num_workers)
    return open_data(config, batch_size=batch_size, seed=0, vocab_size=4_000).loader(**of)


FAULTS = (
    "damaged_record",
    "text_not_utf8",
    "no_image",
    "image_size",
    "undecodable_image",
    "no_caption",
)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory) -> pathlib.Path:
    """Ten records: 1 and 2 cannot be used, 5 and the last neither, 7 has too long a caption."""
    folder = tmp_path_factory.mktemp("damaged")
    records = [encode_record(good(index)) for index in range(10)]
    for index, name in (
        (1, FAULTS[0]),
        (2, FAULTS[4]),
        (5, FAULTS[5]),
        (7, "overlong_caption"),
        (9, FAULTS[1]),
    ):
        records[index] = broken(name)
    write_raw(folder, records)
    return folder


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_has_its_reason_and_the_next_record_replaces_it(tmp_path, name):
    write_raw(tmp_path, [encode_record(good(0)), broken(name), encode_record(good(2))])
    batch, info = loader_of(tmp_path, batch_size=3).batch_at(0)
    assert sorted(info.ids["paired"]) == ["0", "2", "2"]
    assert info.broken == (BrokenRow(0, 1, name),)
    # Image and caption are the substitute's too.
    assert [round(float(image.mean()) / 10) for image in batch["paired"].images] == [
        int(id) for id in info.ids["paired"]
    ]


def test_each_broken_record_is_counted_once_an_epoch_and_the_batch_stays_full(damaged):
    loader = loader_of(damaged)
    for step in range(3):
        batch, info = loader.batch_at(step)
        assert batch["paired"].images.shape[0] == 10
        assert sorted((row.index, row.fault) for row in info.broken) == [
            (1, "damaged_record"),
            (2, "undecodable_image"),
            (5, "no_caption"),
            (7, "overlong_caption"),
            (9, "text_not_utf8"),
        ]
        # 3 also replaces 1 and 2; 0 follows the last record. A cut caption keeps its record.
        assert sorted(info.ids["paired"]) == ["0", "0", "0", "3", "3", "3", "4", "6", "6", "8"]


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # As in test_workers.
def test_workers_restarts_and_processes_see_the_same_in_place_of_broken_records(damaged):
    whole = loader_of(damaged)
    loader = loader_of(damaged, num_workers=2, start_step=1)
    for step in (1, 2):
        got, expected = next(loader), whole.batch_at(step)
        jax.tree.map(np.testing.assert_array_equal, got[0], expected[0])
        assert got[1] == expected[1]
    loader.close()
    halves = [loader_of(damaged, parts=[i], num_parts=2).batch_at(4)[1] for i in (0, 1)]
    expected = whole.batch_at(4)[1]
    assert [*halves[0].ids["paired"], *halves[1].ids["paired"]] == expected.ids["paired"]
    assert (*halves[0].broken, *halves[1].broken) == expected.broken


def test_a_flipped_byte_costs_one_record_even_the_first(tmp_path):
    path = pathlib.Path(write_shards(tmp_path, "pairs", [good(index) for index in range(10)])[0])
    content = bytearray(path.read_bytes())
    content[120] ^= 0xFF
    path.write_bytes(content)
    _, info = loader_of(tmp_path).batch_at(0)
    assert info.broken == (BrokenRow(0, 0, "damaged_record"),)


def test_a_shard_that_is_cut_while_it_is_open_ends_the_run(tmp_path):
    write_shards(
        tmp_path, "pairs", [Record(id=str(n), image=os.urandom(40_000)) for n in range(10)]
    )
    [path] = tmp_path.iterdir()
    shards = open_shards(str(path))
    assert shards[0].id == "0"
    os.truncate(path, 70_000)
    with pytest.raises(DataError, match=r"has 70,000 bytes now, .* at the start") as caught:
        list(shards)
    assert not isinstance(caught.value, DamagedRecordError)


def counter(max_fraction: float = 0.01, state=None) -> BrokenRecords:
    return BrokenRecords(
        [Source("paired", 100, SourceConfig())],
        max_fraction=max_fraction,
        place=lambda source, index: f"file, record {index}",
        state=state,
    )


def met(records: BrokenRecords, indices: list[int]) -> None:
    records.name([BrokenRow(0, index, "undecodable_image") for index in indices])
    records.add(1, [{"undecodable_image": len(indices)}], records.num_named())


def test_too_many_broken_records_stop_the_run_with_a_summary():
    records = counter()
    met(records, [0, 1, 2, 3, 4])  # Of a hundred: may be chance.
    with pytest.raises(
        UserError,
        match=r"source paired is broken: 10 of its last 200 rows \(5\.0%\): 10 undecodable_image"
        r".*\n.*file, record 0; .*\n.*--data\.max_broken_fraction",
    ):
        met(records, [5, 6, 7, 8, 9])


def test_neither_one_broken_record_of_a_tiny_set_nor_bad_luck_stops_a_run():
    records = counter()
    for _ in range(100):
        met(records, [7, 7, 7, 7])
    records = counter()
    met(records, [1, 2, 3, 4, 5])
    for _ in range(1000):
        met(records, [1])


def test_a_fraction_of_zero_stops_at_the_first():
    with pytest.raises(UserError, match="1 of its last 100 rows"):
        met(counter(0.0), [3])


def test_counting_goes_on_where_it_was(caplog):
    straight, first = counter(), counter()
    for records in (straight, first):
        met(records, [1, 2])
    later = counter(state=first.state)
    caplog.clear()
    for records in (straight, later):
        met(records, [2])
    assert later.state == straight.state
    assert not caplog.records  # Named before.


def test_the_first_few_are_named_in_the_log(caplog):
    met(counter(max_fraction=0.5), [1, 2, 3, 4, 5, 6])
    assert [record.getMessage().partition(";")[0] for record in caplog.records] == [
        f"broken record (undecodable_image): file, record {index}" for index in (1, 2, 3, 4)
    ]
