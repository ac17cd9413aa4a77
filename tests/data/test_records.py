"""Records, shards, the starter set: what is read is what was written, and what cannot be read is
named.
"""

import hashlib
import json
import pathlib
import pickle
import subprocess
import sys
from typing import Any

import msgpack
import pytest
from array_record.python.array_record_module import ArrayRecordWriter

from m3ae_tpu.data import manifest
from m3ae_tpu.data.manifest import STARTER, resolve
from m3ae_tpu.data.records import Record, decode_record, encode_record
from m3ae_tpu.data.shards import DamagedRecordError, open_shards, write_shard, write_shards
from m3ae_tpu.errors import UserError

FULL = Record(
    id="a",
    image=b"\x00\xff",
    captions=("Ein Käfer.", "A bug."),
    label_name="animals",
    title="bug",
    group="g1",
    source="s",
    creator="c",
    license="l",
)


def packed(value: Any) -> bytes:
    return msgpack.Packer().pack(value)


def numbered(n: int) -> list[Record]:
    return [Record(id=str(index), captions=(f"caption {index} " * 50,)) for index in range(n)]


@pytest.mark.parametrize("record", [FULL, Record(id="b"), Record(id="c", captions=("",))])
def test_a_record_survives_packing(record):
    assert decode_record(encode_record(record)) == record


def test_fields_that_say_nothing_are_left_out():
    assert msgpack.unpackb(encode_record(Record(id="b", title="bug"))) == {
        "version": 1,
        "id": "b",
        "title": "bug",
    }


def test_another_version_is_refused():
    with pytest.raises(
        UserError, match=r"record a has version = 2, this program reads 1\. Make the shards again"
    ):
        decode_record(packed({"version": 2, "id": "a"}))


def test_a_field_of_later_tools_is_ignored():
    assert decode_record(packed({"version": 1, "id": "a", "mood": "good"})) == Record(id="a")


@pytest.mark.parametrize("data", [b"", b"\xc1", b"hello", packed([1]), packed({"version": 1})])
def test_bytes_that_are_no_record_are_refused(data):
    with pytest.raises(ValueError, match="not a record"):
        decode_record(data)


def test_shards_are_one_sequence_in_order(tmp_path):
    paths = write_shards(tmp_path, "train", numbered(10), num_shards=3)
    shards = open_shards(f"{tmp_path}/train-*")
    assert list(shards) == numbered(10)
    assert shards.name_counts() == [
        [pathlib.Path(path).name, n] for path, n in zip(paths, (3, 3, 4), strict=True)
    ]
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


def test_a_pattern_without_files_is_refused(tmp_path):
    with pytest.raises(
        UserError, match=rf"shards = {tmp_path}/no-\* matches no file\. Check the path"
    ):
        open_shards(f"{tmp_path}/no-*")


def test_starter_names_the_set_in_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [pathlib.Path(path).parent for path in resolve("starter/train-*")] == [STARTER, STARTER]


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


@pytest.mark.parametrize("cut", [0, 100, 65536, -1])
def test_a_shard_that_was_cut_short_is_refused(tmp_path, cut):
    (path,) = write_shards(tmp_path, "x", numbered(1000))
    pathlib.Path(path).write_bytes(pathlib.Path(path).read_bytes()[:cut])
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


def test_the_starter_set_is_what_its_manifest_says():
    lines = json.loads((STARTER / "manifest.json").read_text())
    assert lines["records"] == {"train": 3894, "heldout": 973, "images": 300, "texts": 10672}
    for name, shard in lines["shards"].items():
        assert hashlib.sha256((STARTER / name).read_bytes()).hexdigest() == shard["sha256"]
        assert len(open_shards(str(STARTER / name))) == shard["records"]


def test_no_near_duplicate_of_a_held_out_picture_is_trained_on():
    train, heldout = open_shards("starter/train-*"), open_shards("starter/heldout-*")
    assert not {record.group for record in train} & {record.group for record in heldout}
    assert not {record.id for record in train} & {record.id for record in heldout}


def make_starter_set(*flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "m3ae_tpu.pipelines.make_starter_set", *flags]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_starter_set_is_made_again_bit_for_bit_and_not_replaced_by_accident(tmp_path):
    made = make_starter_set(f"--output={tmp_path}")
    assert made.returncode == 0, made.stderr
    for name in (
        "manifest.json",
        "ATTRIBUTION.md",
        *json.loads((STARTER / "manifest.json").read_text())["shards"],
    ):
        assert (tmp_path / name).read_bytes() == (STARTER / name).read_bytes(), name
    refused = make_starter_set(f"--output={tmp_path}")
    assert refused.returncode == 2
    assert refused.stderr == (
        f"error: --output = {tmp_path} holds a set already. "
        "Name another folder, or add --overwrite.\n"
    )


def test_a_folder_without_the_source_form_is_refused(tmp_path):
    refused = make_starter_set(f"--source={tmp_path}", f"--output={tmp_path}/out")
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"error: --source = {tmp_path} holds no pairs.jsonl.gz.")


def test_a_package_in_a_folder_that_looks_like_a_glob_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "STARTER", tmp_path / "a[1]")
    (tmp_path / "a[1]").mkdir()
    write_shards(tmp_path / "a[1]", "train", numbered(1))
    assert list(open_shards("starter/train-*")) == numbered(1)


def test_a_missing_shard_of_a_set_is_named_unless_the_pattern_chooses(tmp_path):
    write_shards(tmp_path, "train", numbered(6), num_shards=3)
    (tmp_path / "train-00001-of-00003.array_record").unlink()
    with pytest.raises(UserError, match=r"lacks .*train-00001-of-00003\. Copy or make it again"):
        open_shards(f"{tmp_path}/train-*")
    assert len(open_shards(f"{tmp_path}/train-0000[02]-of-00003*")) == 4


def test_a_shard_that_cannot_be_finished_leaves_nothing_behind(tmp_path):
    def failing():
        yield Record(id="0", captions=("a text",))
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        write_shard(tmp_path / "train.array_record", failing(), "group_size:1")
    assert list(tmp_path.iterdir()) == []
