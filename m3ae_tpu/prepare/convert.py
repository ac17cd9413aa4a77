"""From samples to shards: pure functions, called by the local engine and by Beam.

A record's position among all others is given by a digest of its content and the seed. The shards
are therefore a uniform shuffle, and the same bytes for any order of the input, engine, number of
workers and number of interruptions.
"""

import collections
import dataclasses
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from m3ae_tpu.data.images import image_size
from m3ae_tpu.data.records import VERSION, Record, decode_record, encode_record
from m3ae_tpu.data.shards import write_shard
from m3ae_tpu.errors import UserError, require
from m3ae_tpu.files import file_sha256
from m3ae_tpu.prepare.cleaning import Unfit, clean_sample
from m3ae_tpu.prepare.options import CleaningOptions, PrepareOptions
from m3ae_tpu.prepare.samples import Sample

DROPPED, PASSED_OVER = "dropped.jsonl", "passed_over.jsonl"
"""Names of the lists of all dropped samples, and of all files of the input that were not read."""
DROPPED_CAPTIONS = "dropped_captions.jsonl"
"""Name of the list of captions that kept samples lost. Only the first list may be empty."""
STORED = "group_size:1,uncompressed"
"""ArrayRecord's options: each record can be read alone, and images are compressed already."""


@dataclasses.dataclass(kw_only=True)
class Summary:
    """Counts of the samples of a piece, filled in while they are cleaned."""

    given: int = 0
    kept: int = 0
    bytes: int = 0
    """Size of the kept records."""
    shorter_sides: dict[str, int] = dataclasses.field(default_factory=dict)
    """Histogram of images by their shorter side, pixels."""
    caption_lengths: dict[str, int] = dataclasses.field(default_factory=dict)
    """Histogram of captions by their characters, in steps of 20."""
    classes: dict[str, int] = dataclasses.field(default_factory=dict)
    """Number of examples of each class, of labelled ones."""
    dropped: list[list[str]] = dataclasses.field(default_factory=list)
    """Place, reason and detail of each dropped sample."""
    left_out_pages: int = 0
    """Pages of TIFFs behind the first one."""
    left_out_captions: list[list[str]] = dataclasses.field(default_factory=list)
    """The same of each caption that a kept sample lost."""


def clean(
    samples: Iterable[Sample], options: CleaningOptions, seed: int, summary: Summary
) -> Iterator[tuple[bytes, bytes]]:
    """Yields shuffle key and encoded record of the samples that are fit, and fills in `summary`."""
    for sample in samples:
        summary.given += 1
        try:
            record, size, left_out, left_out_pages = clean_sample(sample, options)
        except Unfit as unfit:
            reason, detail = unfit.fault
            summary.dropped.append([sample.place, reason, detail or sample.found])
            continue
        data = encode_record(record)
        summary.kept += 1
        summary.bytes += len(data)
        _count(summary, record, size)
        summary.left_out_pages += left_out_pages
        summary.left_out_captions += [[sample.place, *fault] for fault in left_out]
        yield shuffle_key(record.id, seed), data


def _count(summary: Summary, record: Record, size: tuple[int, int]) -> None:
    if record.image:
        _add_one(summary.shorter_sides, str(min(size)))
    if record.captions:
        _add_one(summary.caption_lengths, str(len(record.captions[0]) // 20 * 20))
    if record.label_name:
        _add_one(summary.classes, record.label_name)


def _add_one(histogram: dict[str, int], key: str) -> None:
    histogram[key] = histogram.get(key, 0) + 1


def shuffle_key(record_id: str, seed: int) -> bytes:
    """Returns 16 bytes whose order is the order of the records."""
    return hashlib.sha256(f"{seed} {record_id}".encode()).digest()[:16]


def shard_of(key: bytes, num_shards: int) -> int:
    """Returns the shard of a shuffle key. Shards are equal ranges of all keys, in order."""
    return int.from_bytes(key[:8]) * num_shards >> 64


def first_key(shard: int, num_shards: int) -> int:
    """Returns the first eight bytes of a shard's smallest shuffle key, as a number."""
    return -(-(shard << 64) // num_shards)


def count_shards(size: int, records: int, options: PrepareOptions) -> int:
    """Returns the number of shards for `records` of `size` bytes in all.

    Records are assigned to shards by their digests. With 32 on average, no shard stays empty.
    """
    wanted = round(size / (options.shard_megabytes * 1e6))
    return options.num_shards or max(1, min(wanted, records // 32))


def gather_shard(
    path: pathlib.Path, records: Iterable[bytes], *, drop_duplicates: bool
) -> dict[str, Any]:
    """Writes encoded records, given in the order of their keys, to a shard.

    Of records with the same content the later ones get the id `ID-1` and so on, or are left out.
    Memory holds one record at a time.

    Returns:
        The shard's line of the manifest, with the number of `duplicates` and a summary of the
        records that were left out.
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
                left_out.dropped.append([f"a copy of record {record.id}", "duplicate", ""])
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


def require_fit(summaries: Sequence[Summary], passed_over: Mapping[str, tuple[int, str]]) -> None:
    """Refuses a collection of which nothing was kept.

    Args:
        summaries: Those of all pieces.
        passed_over: Files that were not read, with their sizes and the reasons.

    Raises:
        UserError: with the most frequent reasons.
    """
    if any(summary.kept for summary in summaries):
        return
    given = sum(summary.given for summary in summaries)
    dropped = [line for summary in summaries for line in summary.dropped]
    reasons = collections.Counter(reason for _, reason, _ in dropped).most_common(3)
    first = {reason: detail for _, reason, detail in reversed(dropped)}
    found = ", ".join(
        f"{reason} ({count:,}{f': {first[reason]}' if first[reason] else ''})"
        for reason, count in reasons
    )
    examples = "1 example" if given == 1 else f"{given:,} examples"
    message = f"--input gave {examples} and none is fit: {found or 'all files are empty'}."
    raise UserError("\n".join([message, *passed_over_lines(passed_over)]))


def passed_over_lines(passed_over: Mapping[str, tuple[int, str]]) -> list[str]:
    """Returns up to three lines for a terminal that tell which files were not read, and why."""
    names: dict[str, list[str]] = {}
    for url, (_, reason) in passed_over.items():
        names.setdefault(reason, []).append(os.path.basename(url))
    lines = [
        f"passed over {len(of_reason):,} file{'s' * (len(of_reason) > 1)}: "
        f"{', '.join(of_reason[:3])}{', ...' if len(of_reason) > 3 else ''} ({reason})"
        for reason, of_reason in names.items()
    ]
    return lines if len(lines) <= 3 else [*lines[:2], f"... and {len(lines) - 2} other reasons"]


def require_no_empty_shard(filled: int, num_shards: int) -> None:
    """Refuses empty shards, which no program reads.

    Raises:
        UserError: some of `num_shards` are not among the `filled` ones.
    """
    require(
        filled == num_shards,
        f"--num_shards = {num_shards} leaves {num_shards - filled} shards without records. "
        "Set it lower, or leave it out, and start again: what was cleaned is kept.",
    )


def make_lists(
    summaries: Sequence[Summary],
    shards: Mapping[str, dict[str, Any]],
    passed_over: Mapping[str, tuple[int, str]],
) -> dict[str, Iterator[str]]:
    """Returns the lines of each list beside the manifest, by the name of its file.

    Samples come in the order of the input, then duplicates in the order of the shards.
    """
    of_pieces = (summary.dropped for summary in summaries)
    of_shards = (shards[name]["left_out"]["dropped"] for name in sorted(shards))
    captions = [summary.left_out_captions for summary in summaries]
    lists = {DROPPED: _drop_lines(itertools.chain(of_pieces, of_shards))}
    lists |= {PASSED_OVER: _passed_over_json(passed_over)} if passed_over else {}
    return lists | ({DROPPED_CAPTIONS: _drop_lines(captions)} if any(captions) else {})


def _drop_lines(groups: Iterable[Iterable[list[str]]]) -> Iterator[str]:
    for dropped in groups:
        for place, reason, detail in dropped:
            line = {"place": place, "reason": reason} | ({"detail": detail} if detail else {})
            yield json.dumps(line) + "\n"


def _passed_over_json(passed_over: Mapping[str, tuple[int, str]]) -> Iterator[str]:
    """Yields the lines of `passed_over.jsonl`, in the order of the input."""
    for url, (size, reason) in passed_over.items():
        yield json.dumps({"place": url, "bytes": size, "reason": reason}) + "\n"


def make_manifest(
    summaries: list[Summary],
    shards: dict[str, dict[str, Any]],
    options: PrepareOptions,
    inputs: dict[str, Any],
) -> dict[str, Any]:
    """Returns the content of `manifest.json`, in which `given` = `kept` + the sum of `dropped`."""
    left_out = [Summary(**line["left_out"]) for line in shards.values()]
    dropped = collections.Counter(
        reason for summary in [*summaries, *left_out] for _, reason, _ in summary.dropped
    )
    captions = collections.Counter(
        reason for summary in summaries for _, reason, _ in summary.left_out_captions
    )
    return {
        "schema_version": VERSION,
        "kind": options.cleaning.kind,
        "license": options.cleaning.license,
        "given": sum(summary.given for summary in summaries),
        "kept": sum(line["records"] for line in shards.values()),
        "dropped": dict(sorted(dropped.items())),
        "dropped_list": DROPPED,
        "left_out_captions": dict(sorted(captions.items())),
        "left_out_pages": sum(summary.left_out_pages for summary in summaries),
        "duplicates": sum(line["duplicates"] for line in shards.values()),
        "bytes": sum(line["bytes"] for line in shards.values()),
        "inputs": inputs,
        "options": dataclasses.asdict(options),
        "shorter_side_pixels": _by_number(_difference(summaries, left_out, "shorter_sides")),
        "caption_characters": _by_number(_difference(summaries, left_out, "caption_lengths")),
        "classes": dict(sorted(_difference(summaries, left_out, "classes").items())),
        "shards": {
            name: {key: line[key] for key in ("records", "bytes", "sha256")}
            for name, line in sorted(shards.items())
        },
    }


def _difference(
    summaries: Iterable[Summary], left_out: Iterable[Summary], histogram: str
) -> dict[str, int]:
    """Returns the sum of a histogram over summaries, minus that over others."""
    total: collections.Counter[str] = collections.Counter()
    for summary in summaries:
        total.update(getattr(summary, histogram))
    for summary in left_out:
        total.subtract(getattr(summary, histogram))
    return {key: count for key, count in total.items() if count}


def _by_number(histogram: Mapping[str, int]) -> dict[str, int]:
    """Returns a histogram with its keys, whole numbers as texts, in order."""
    return dict(sorted(histogram.items(), key=lambda entry: int(entry[0])))
