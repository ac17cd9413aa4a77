"""From a collection to shuffled shards: pure functions of a part and of a shard.

Every part is cleaned into a file of records of its own; then every shard takes its records out of these files. A
record's place follows from the digest of its content and the seed, so the shards are a real shuffle and the same bytes
whatever the order of the input, the number of processes, and how often the work was interrupted.
"""

import collections
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from m3ae_tpu.data.prepare.cleaning import CleaningOptions, Unfit, clean_sample
from m3ae_tpu.data.prepare.parts import Part
from m3ae_tpu.data.records import Record, decode_record, encode_record, write_shard

_STORED = "group_size:1,uncompressed"


def place_of(record_id: str, seed: int) -> bytes:
    """Returns 16 bytes that decide where a record lies among all others."""
    return hashlib.sha256(f"{seed} {record_id}".encode()).digest()[:16]


def first_place(shard: int, num_shards: int) -> int:
    """Returns the smallest 64-bit start of a place in a shard: shards are equal slices of all places."""
    return -(-(shard << 64) // num_shards)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CleanPart:
    """What a part gave, as plain data."""

    given: int
    places: list[str]
    """Of the kept records, hexadecimal, in the order of the part's file."""
    sizes: list[int]
    """Bytes of each."""
    shorter_sides: dict[str, int]
    """Histogram, pixels."""
    caption_lengths: dict[str, int]
    """Histogram, characters, in steps of 20."""
    dropped: list[list[str]]
    """Place and reason of everything that was not kept."""


def part_name(part: Part) -> str:
    """Returns the name of a cleaned part's file."""
    return f"{hashlib.sha256(part.key().encode()).hexdigest()[:24]}.array_record"


def clean_part(part: Part, options: CleaningOptions, seed: int, folder: pathlib.Path) -> CleanPart:
    """Cleans a part into `folder`, or returns what is there from an earlier call. Complete or not there at all."""
    name = part_name(part)
    summary, records = folder / f"{name}.json", folder / name
    if summary.exists():
        return CleanPart(**json.loads(summary.read_text()))
    given, places, sizes, dropped = 0, [], [], []
    sides: collections.Counter[str] = collections.Counter()
    lengths: collections.Counter[str] = collections.Counter()
    unfinished = folder / f"{name}.unfinished"
    writer = ArrayRecordWriter(str(unfinished), _STORED)
    for sample in part.samples():
        given += 1
        try:
            record, size = clean_sample(sample, options)
        except Unfit as unfit:
            dropped.append([sample.place, str(unfit)])
            continue
        data = encode_record(record)
        writer.write(data)
        places.append(place_of(record.id, seed).hex())
        sizes.append(len(data))
        if record.image:
            sides[str(min(size))] += 1
        if record.captions:
            lengths[str(len(record.captions[0]) // 20 * 20)] += 1
    writer.close()
    os.replace(unfinished, records)
    part_done = CleanPart(
        given=given,
        places=places,
        sizes=sizes,
        shorter_sides=dict(sides),
        caption_lengths=dict(lengths),
        dropped=dropped,
    )
    write_text(summary, json.dumps(dataclasses.asdict(part_done)))
    return part_done


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardTask:
    """A shard to gather: its records lie at `start` to `stop` of the sorted index in `folder`."""

    path: pathlib.Path
    folder: pathlib.Path
    start: int
    stop: int
    drop_duplicates: bool


def gather_shard(task: ShardTask) -> dict[str, Any]:
    """Writes a shard out of the cleaned parts, or returns its line of the manifest from an earlier call.

    Of records with the same content the later ones are left out or get the id `ID-1` and so on; `duplicates` says
    how many. Holds one record at a time.
    """
    summary = task.folder / f"{task.path.name}.json"
    if summary.exists() and task.path.exists():
        return json.loads(summary.read_text())
    names = json.loads((task.folder / "files").read_text())
    files = np.load(task.folder / "file.npy", mmap_mode="r")[task.start : task.stop].tolist()
    rows = np.load(task.folder / "row.npy", mmap_mode="r")[task.start : task.stop].tolist()
    sources: dict[int, ArrayRecordDataSource] = {}
    duplicates = 0

    def records() -> Iterator[Record]:
        nonlocal duplicates
        before, copies = "", 0
        for file, row in zip(files, rows, strict=True):
            if file not in sources:
                sources[file] = ArrayRecordDataSource([str(task.folder / names[file])])
            record = decode_record(sources[file][row])
            copies, before = (copies + 1 if record.id == before else 0), record.id
            duplicates += copies > 0
            if copies == 0:
                yield record
            elif not task.drop_duplicates:
                yield dataclasses.replace(record, id=f"{record.id}-{copies}")

    count = write_shard(task.path, records(), _STORED)
    size, digest = task.path.stat().st_size, file_digest(task.path)
    line = {"records": count, "bytes": size, "sha256": digest, "duplicates": duplicates}
    write_text(summary, json.dumps(line))
    return line


def sort_places(folder: pathlib.Path, parts: dict[str, CleanPart], num_shards: int) -> list[int]:
    """Writes the sorted index of all kept records and returns where each shard starts in it, and the end."""
    places = np.frombuffer(
        bytes.fromhex("".join(place for part in parts.values() for place in part.places)), ">u8"
    ).reshape(-1, 2)
    counts = [len(part.places) for part in parts.values()]
    files = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    rows = np.concatenate([np.arange(count, dtype=np.int64) for count in counts] or [np.zeros(0, np.int64)])
    order = np.lexsort((places[:, 1], places[:, 0]))
    np.save(folder / "file.npy", files[order])
    np.save(folder / "row.npy", rows[order])
    write_text(folder / "files", json.dumps(list(parts)))
    starts = np.array([first_place(shard, num_shards) for shard in range(num_shards)], np.uint64)
    return [*np.searchsorted(places[order, 0].astype(np.uint64), starts).tolist(), len(order)]


def file_digest(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file in one piece: complete under its name, or not there."""
    unfinished = path.with_name(f".{path.name}.new")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)
