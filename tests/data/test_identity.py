"""Guards the identity of shards: other content is another set; another place or time is not."""

import dataclasses
import hashlib
import json
import os
import pathlib
import shutil

import numpy as np
import pytest
from small_sets import data_of

from m3ae_tpu.config import SourceConfig
from m3ae_tpu.data import identity
from m3ae_tpu.data.identity import ShardIdentity
from m3ae_tpu.data.records import Record
from m3ae_tpu.data.shards import open_shards, write_shards
from m3ae_tpu.data.sources import differences

PHRASE = "the content of sources.0's x-00000-of-00001.array_record changed"


def images(n: int, num_bytes: int = 100) -> list[Record]:
    """Returns records of equal sizes that do not compress."""
    random = np.random.default_rng(0)
    return [Record(id=f"{index:04d}", image=random.bytes(num_bytes)) for index in range(n)]


def write(folder: pathlib.Path, records: list[Record]) -> pathlib.Path:
    """Writes a set of one shard, with its manifest."""
    folder.mkdir(exist_ok=True)
    (path,) = map(pathlib.Path, write_shards(folder, "x", records))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    line = {"records": len(records), "bytes": path.stat().st_size, "sha256": sha256}
    (folder / "manifest.json").write_text(json.dumps({"shards": {path.name: line}}))
    return path


def fingerprint(folder: pathlib.Path):
    """Returns a run's fingerprint as a checkpoint gives it back."""
    sources = (SourceConfig(kind="image", shards=f"{folder}/*-of-*"),)
    return json.loads(json.dumps(data_of(folder, sources=sources).fingerprint()))


def with_changed(records: list[Record], index: int, num_bytes: int = 100) -> list[Record]:
    """Returns the records, one with another image of the same size."""
    other = np.random.default_rng(1).bytes(num_bytes)
    return [
        dataclasses.replace(record, image=other) if number == index else record
        for number, record in enumerate(records)
    ]


@pytest.mark.parametrize(
    "other",
    [
        [dataclasses.replace(record, id=f"x{record.id[1:]}") for record in images(40)],
        images(40)[::-1],
        with_changed(images(40), 20),
        [images(40)[number] for number in (*range(38), 39, 38)],
    ],
    ids=["all", "reversed", "one", "two swapped"],
)
def test_other_records_of_equal_number_and_sizes_are_another_set(tmp_path, other):
    path = write(tmp_path, images(40))
    was, digest, size = fingerprint(tmp_path), open_shards(str(path)).digest, path.stat().st_size
    write(tmp_path, other)
    assert path.stat().st_size == size
    assert open_shards(str(path)).digest != digest
    assert differences(fingerprint(tmp_path), was) == [PHRASE]
    (tmp_path / "manifest.json").unlink()
    assert differences(fingerprint(tmp_path), was) == [PHRASE]


@pytest.mark.parametrize("keeps_manifest", [True, False])
def test_a_moved_set_is_the_same(tmp_path, keeps_manifest):
    was = fingerprint(write(tmp_path / "a", images(40)).parent)
    shutil.move(tmp_path / "a", tmp_path / "b")
    (path,) = (tmp_path / "b").glob("x-*")
    os.utime(path, (0, 0))
    if not keeps_manifest:
        (tmp_path / "b" / "manifest.json").unlink()
    assert differences(fingerprint(tmp_path / "b"), was) == []
    assert differences(was, fingerprint(tmp_path / "b")) == []


@pytest.mark.parametrize("text", ["", "[]", '{"shards": {"x-00000-of-00001.array_record": 1}}'])
def test_a_damaged_manifest_does_not_matter(tmp_path, text):
    write(tmp_path, images(40))
    was = fingerprint(tmp_path)
    (tmp_path / "manifest.json").write_text(text)
    assert differences(fingerprint(tmp_path), was) == []


def test_the_manifest_tells_large_shards_apart_where_no_read_does(tmp_path):
    records = images(200, num_bytes=10_000)
    path = write(tmp_path, records)
    was, size = fingerprint(tmp_path), path.stat().st_size
    changed = with_changed(records, 50, num_bytes=10_000)
    write(tmp_path, changed)
    assert path.stat().st_size == size > 2**20
    assert differences(fingerprint(tmp_path), was) == [PHRASE]
    (tmp_path / "manifest.json").unlink()
    assert differences(fingerprint(tmp_path), was) == []
    write(tmp_path, [*records[:50], *images(201, num_bytes=10_000)[51:]])
    (tmp_path / "manifest.json").unlink()
    assert differences(fingerprint(tmp_path), was) == [PHRASE]


def test_a_large_shard_is_known_by_few_reads(tmp_path, monkeypatch):
    path = write(tmp_path, images(400, num_bytes=10_000))
    reads = []

    class File:
        def __init__(self, *args):
            self.file = open(*args)  # noqa: SIM115

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def seek(self, *args):
            return self.file.seek(*args)

        def read(self, count):
            reads.append(count)
            return self.file.read(count)

    monkeypatch.setattr(identity, "open", File, raising=False)
    assert len(open_shards(str(path)).digest) == 16
    assert len(reads) <= 5
    assert sum(reads) < path.stat().st_size / 4


def test_shards_in_several_folders_are_told_apart_and_ordered():
    a, b, c = (ShardIdentity("x", 3, content) for content in ("a", "b", "c"))
    assert identity.changes("s", [a, b], [a, b]) == []
    assert identity.changes("s", [a, c], [a, b]) == ["the content of s's x (2) changed"]
    d = ShardIdentity("y", 3, "d")
    assert identity.changes("s", [d, a], [a, d]) == ["s's shards come in another order"]
    assert identity.changes("s", [a], [a, d]) == ["records of s's y = nothing now, was 3"]


def test_a_checkpoint_without_contents_is_refused_by_its_shards(tmp_path):
    write(tmp_path, images(40))
    now = fingerprint(tmp_path)
    was = json.loads(json.dumps(now))
    was["sources"][0]["shards"] = [["x-00000-of-00001.array_record", 40]]
    assert differences(now, was) == [PHRASE]
