"""From samples to shards: pure functions, which the local pool and Beam drive alike.

A record's place among all others follows from the digest of its content and the seed, so the shards
are a real shuffle and the same bytes whatever the order of the input, the engine, the number of
workers, and how often work was interrupted.
"""

import collections
import dataclasses
import hashlib
import itertools
import json
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from m3ae_tpu.data.records import VERSION, Record, decode_record, encode_record
from m3ae_tpu.data.shards import write_shard
from m3ae_tpu.errors import require
from m3ae_tpu.files import file_sha256
from m3ae_tpu.prepare.cleaning import CleaningOptions, Unfit, clean_sample, image_size
from m3ae_tpu.prepare.samples import Sample

MANIFEST, DROPPED = "manifest.json", "dropped.jsonl"
STORED = "group_size:1,uncompressed"


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """How a collection becomes a set of shards."""

    cleaning: CleaningOptions
    """What records must be like."""
    name: str = "train"
    """Start of the shards' file names."""
    seed: int = 0
    """Decides the order of the records."""
    num_shards: int = 0
    """Shards to write; 0 takes as many as `shard_megabytes` asks for."""
    shard_megabytes: int = 256
    """Size of a shard."""
    drop_duplicates: bool = False
    """Whether of examples with the same image and text all but one are dropped."""

    def __post_init__(self) -> None:
        require(
            0 <= self.num_shards <= 99_999,
            f"--num_shards = {self.num_shards} is not in 0 to 99999. Set 0.",
        )
        require(
            self.shard_megabytes >= 1,
            f"--shard_megabytes = {self.shard_megabytes} is not positive. Set 256.",
        )
        require(
            re.fullmatch(r"[A-Za-z0-9_.-]{1,100}", self.name) is not None and self.name[0] != ".",
            f"--name = {self.name[:60]!a} is no file name of up to 100 letters, digits, '_', '.', '-'. Set train.",
        )


@dataclasses.dataclass(kw_only=True)
class Summary:
    """What became of the samples of a part; filled in while they are cleaned."""

    given: int = 0
    kept: int = 0
    bytes: int = 0
    """Of the kept records."""
    shorter_sides: dict[str, int] = dataclasses.field(default_factory=dict)
    """Histogram, pixels."""
    caption_lengths: dict[str, int] = dataclasses.field(default_factory=dict)
    """Histogram, characters, in steps of 20."""
    dropped: list[list[str]] = dataclasses.field(default_factory=list)
    """Place and reason of everything that was not kept."""


def clean(
    samples: Iterable[Sample], options: CleaningOptions, seed: int, summary: Summary
) -> Iterator[tuple[bytes, bytes]]:
    """Yields place and encoded record of the samples that are fit, and fills in `summary`."""
    for sample in samples:
        summary.given += 1
        try:
            record, size = clean_sample(sample, options)
        except Unfit as unfit:
            summary.dropped.append([sample.place, str(unfit)])
            continue
        data = encode_record(record)
        summary.kept += 1
        summary.bytes += len(data)
        _count(summary, record, size)
        yield place_of(record.id, seed), data


def _count(summary: Summary, record: Record, size: tuple[int, int]) -> None:
    if record.image:
        _add_one(summary.shorter_sides, min(size))
    if record.captions:
        _add_one(summary.caption_lengths, len(record.captions[0]) // 20 * 20)


def _add_one(histogram: dict[str, int], value: int) -> None:
    # Keys are texts, as JSON will have them.
    histogram[str(value)] = histogram.get(str(value), 0) + 1


def place_of(record_id: str, seed: int) -> bytes:
    """Returns 16 bytes that decide where a record lies among all others."""
    return hashlib.sha256(f"{seed} {record_id}".encode()).digest()[:16]


def shard_of(place: bytes, num_shards: int) -> int:
    """Returns the shard of a place: shards are equal slices of all places, in order."""
    return int.from_bytes(place[:8]) * num_shards >> 64


def first_place(shard: int, num_shards: int) -> int:
    """Returns the first eight bytes of a shard's smallest place, as a number."""
    return -(-(shard << 64) // num_shards)


def count_shards(size: int, records: int, options: PrepareOptions) -> int:
    """Returns how many shards `records` of `size` bytes in all are written to.

    Records fall to shards like rain: with 32 for each on average, none stays empty.
    """
    asked = round(size / (options.shard_megabytes * 1e6))
    return options.num_shards or max(1, min(asked, records // 32))


def shard_name(shard: int, num_shards: int, options: PrepareOptions) -> str:
    """Returns the file name of a shard."""
    return f"{options.name}-{shard:05d}-of-{num_shards:05d}.array_record"


def gather_shard(
    path: pathlib.Path, records: Iterable[bytes], *, drop_duplicates: bool
) -> dict[str, Any]:
    """Writes encoded records, given in the order of their places, to a shard and returns its line
    of the manifest.

    Of records with the same content the later ones get the id `ID-1` and so on, or are left out;
    `duplicates` says how many. Holds one record at a time.
    """
    duplicates, left_out = 0, Summary()

    def distinct() -> Iterator[Record]:
        nonlocal duplicates
        before, copies = "", 0
        for record in map(decode_record, records):
            copies, before = (copies + 1 if record.id == before else 0), record.id
            duplicates += copies > 0
            if copies == 0:
                yield record
            elif not drop_duplicates:
                yield dataclasses.replace(record, id=f"{record.id}-{copies}")
            else:
                left_out.dropped.append([f"a copy of record {record.id}", "duplicate"])
                size = image_size(record.image) if record.image else (0, 0)
                _count(left_out, record, size)

    count = write_shard(path, distinct(), STORED)
    return {
        "records": count,
        "bytes": path.stat().st_size,
        "sha256": file_sha256(path),
        "duplicates": duplicates,
        "left_out": dataclasses.asdict(left_out),
    }


def require_fit(given: int, kept: int, reasons: collections.Counter[str]) -> None:
    """Refuses a collection of which nothing was kept.

    Raises:
        UserError: with the most frequent reasons.
    """
    found = ", ".join(f"{reason} ({count:,})" for reason, count in reasons.most_common(3))
    require(
        kept > 0,
        f"--input gave {given:,} examples and none is fit: {found or 'all files are empty'}.",
    )


def require_no_empty_shard(filled: int, num_shards: int) -> None:
    """Refuses shards without records, which no program reads.

    Raises:
        UserError: some of `num_shards` are not among the `filled` ones.
    """
    require(
        filled == num_shards,
        f"--num_shards = {num_shards} leaves {num_shards - filled} shards without records. Set it lower, or leave it "
        "out, and start again: what was cleaned is kept.",
    )


def drop_lines(summaries: Iterable[Summary], shards: Mapping[str, dict[str, Any]]) -> Iterator[str]:
    """Yields the lines of `dropped.jsonl`: in the order of the input, then duplicates, in that of
    the shards.
    """
    of_parts = (part.dropped for part in summaries)
    of_shards = (shards[name]["left_out"]["dropped"] for name in sorted(shards))
    for dropped in itertools.chain(of_parts, of_shards):
        for place, reason in dropped:
            yield json.dumps({"place": place, "reason": reason}) + "\n"


def make_manifest(
    summaries: list[Summary],
    shards: dict[str, dict[str, Any]],
    options: PrepareOptions,
    inputs: dict[str, Any],
) -> dict[str, Any]:
    """Returns what `manifest.json` says: `given` = `kept` + the sum of `dropped`, shards with
    digests, histograms.
    """
    left_out = [Summary(**line["left_out"]) for line in shards.values()]
    dropped = collections.Counter(
        reason for part in [*summaries, *left_out] for _, reason in part.dropped
    )
    return {
        "schema_version": VERSION,
        "kind": options.cleaning.kind,
        "license": options.cleaning.license,
        "given": sum(part.given for part in summaries),
        "kept": sum(line["records"] for line in shards.values()),
        "dropped": dict(sorted(dropped.items())),
        "dropped_list": DROPPED,
        "duplicates": sum(line["duplicates"] for line in shards.values()),
        "bytes": sum(line["bytes"] for line in shards.values()),
        "inputs": inputs,
        "options": dataclasses.asdict(options),
        "shorter_side_pixels": _difference(
            (part.shorter_sides for part in summaries), (part.shorter_sides for part in left_out)
        ),
        "caption_characters": _difference(
            (part.caption_lengths for part in summaries),
            (part.caption_lengths for part in left_out),
        ),
        "shards": {
            name: {key: line[key] for key in ("records", "bytes", "sha256")}
            for name, line in sorted(shards.items())
        },
    }


def _difference(added: Iterable[dict[str, int]], taken: Iterable[dict[str, int]]) -> dict[str, int]:
    """Returns the sum of histograms less some others, smallest values first."""
    total: collections.Counter[str] = collections.Counter()
    for histogram in added:
        total.update(histogram)
    for histogram in taken:
        total.subtract(histogram)
    return {
        name: count
        for name, count in sorted(total.items(), key=lambda entry: int(entry[0]))
        if count
    }
