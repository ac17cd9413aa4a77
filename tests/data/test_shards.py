"""Guards shards: records are read as written, and damaged files are named."""

import hashlib
import pathlib
import pickle
import subprocess
import sys
from typing import Any

import msgpack
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from m3ae_tpu.data.records import Record
from m3ae_tpu.data.shards import DamagedRecordError, open_shards, write_shard, write_shards
from m3ae_tpu.errors import UserError


def packed(value: Any) -> bytes:
    return msgpack.Packer().pack(value)


def numbered(n: int) -> list[Record]:
    return [Record(id=str(index), captions=(f"caption {index} " * 50,)) for index in range(n)]


def test_shards_are_one_sequence_in_order(tmp_path):
    paths = write_shards(tmp_path, "train", numbered(10), num_shards=3)
    shards = open_shards(f"{tmp_path}/train-*")
    assert list(shards) == numbered(10)
    assert shards.counts == (3, 3, 4)
    assert shards.place(3) == f"{paths[1]}, record 0"
    assert list(pickle.loads(pickle.dumps(shards))) == numbered(10)


def test_writing_twice_gives_the_same_files_and_no_others(tmp_path):
    def written() -> list[bytes]:
        return [
            pathlib.Path(path).read_bytes()
            for path in write_shards(tmp_path, "x", numbered(5), num_shards=2)
        ]

    assert written() == written()
    assert len(list(tmp_path.iterdir())) == 2


def test_every_unreadable_shard_is_named_in_a_few_lines(tmp_path):
    (good,) = write_shards(tmp_path, "b", numbered(300))
    whole = pathlib.Path(good).read_bytes()
    (tmp_path / "a-text").write_text("no shard " * 20_000)
    (tmp_path / "c-short").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "d-empty").write_bytes(b"")
    with pytest.raises(UserError, match=r"is not an ArrayRecord shard, or was cut short") as caught:
        open_shards(f"{tmp_path}/*")
    message = str(caught.value)
    assert "a-text" in message
    assert "c-short" in message
    assert "1 more" in message
    assert len(message.splitlines()) < 5


@pytest.mark.parametrize("num_bytes", [0, 100, 65536, -1])
def test_a_shard_that_was_cut_short_is_refused(tmp_path, num_bytes):
    (path,) = write_shards(tmp_path, "x", numbered(1000))
    pathlib.Path(path).write_bytes(pathlib.Path(path).read_bytes()[:num_bytes])
    with pytest.raises(
        UserError, match=rf"{path} is not an ArrayRecord shard, or was cut short .* Copy it or make"
    ):
        open_shards(path)


def test_a_shard_without_records_is_refused(tmp_path):
    write_shards(tmp_path, "x", [])
    with pytest.raises(UserError, match="holds no records"):
        open_shards(f"{tmp_path}/x-*")


def test_a_shard_of_another_version_is_refused_before_anything_is_read(tmp_path):
    writer = ArrayRecordWriter(str(tmp_path / "x"), "group_size:1")
    writer.write(packed({"version": 7, "id": "a"}))
    writer.close()
    with pytest.raises(UserError, match=r"x: record a has version = 7"):
        open_shards(str(tmp_path / "x"))


def test_a_record_of_another_version_is_not_taken_for_a_damaged_one(tmp_path):
    writer = ArrayRecordWriter(str(tmp_path / "x"), "group_size:1")
    for version in (1, 7):
        writer.write(packed({"version": version, "id": "a"}))
    writer.close()
    shards = open_shards(str(tmp_path / "x"))
    with pytest.raises(UserError, match=r"record a has version = 7"):
        list(shards.undamaged(range(2)))


def test_a_damaged_record_is_named_and_its_neighbours_are_read(tmp_path):
    records = [
        Record(id=str(index), image=hashlib.shake_128(bytes([index])).digest(5000))
        for index in range(20)
    ]
    (path,) = write_shards(tmp_path, "x", records)
    data = bytearray(pathlib.Path(path).read_bytes())
    data[data.index(records[7].image[1000:1100])] ^= 1
    pathlib.Path(path).write_bytes(data)
    shards = open_shards(path)
    with pytest.raises(
        DamagedRecordError,
        match=rf"{path}, record 7 cannot be read .*Copy or make this shard again",
    ):
        shards[7]
    assert shards[6] == records[6]
    assert shards[8] == records[8]


def test_reading_records_does_not_import_jax():
    code = "import m3ae_tpu.data.labelled, sys; assert not {'jax', 'grain'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_shard_that_cannot_be_finished_leaves_nothing_behind(tmp_path):
    def failing():
        yield Record(id="0", captions=("a text",))
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        write_shard(tmp_path / "train.array_record", failing(), "group_size:1")
    assert list(tmp_path.iterdir()) == []
