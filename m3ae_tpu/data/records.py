"""The record: one form for pairs, images, texts and labelled examples, in ArrayRecord shards.

A record is a msgpack map. Fields that say nothing are left out:

| field | type | meaning |
| --- | --- | --- |
| `version` | int | 1; a reader refuses any other |
| `id` | str | unique within a set |
| `image` | bytes | an encoded image: JPEG, WebP, PNG, ... |
| `captions` | list of str | wordings of the same caption, the main one first; or the text of a text |
| `label_name` | str | class, for probes and evaluation only |
| `title` | str | short name of what is shown; equal titles count as equal in retrieval |
| `group` | str | near-duplicate group; never in two splits |
| `source`, `creator`, `license` | str | where the example comes from, who made it, under which terms |

Pre-training reads `image` and `captions` and nothing else. Shards are written with `group_size:1`:
a single record can be read at random without decoding its neighbours.

A **batch**, as the loader yields it, is a dict from kind to NumPy arrays; a kind is there only if
the config has rows of it:

    batch["paired"] = {"image": uint8 [rows, size, size, 3], "flip": bool [rows],
                       "text": int32 [rows, text_length], "text_valid": bool [rows, text_length]}
    batch["image"]  = {"image": ..., "flip": ...}
    batch["text"]   = {"text": ..., "text_valid": ...}

`flip` tells the train step which images to mirror: on the device, where it costs nothing. Padding
has id 0 and `text_valid` False; the row of a caption without a token is padding all through.
"""

import bisect
import contextlib
import dataclasses
import glob
import itertools
import os
import pathlib
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgpack
import numpy as np
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from m3ae_tpu.config import Kind
from m3ae_tpu.errors import UserError, require
from m3ae_tpu.files import atomic_path

VERSION = 1
STARTER = pathlib.Path(__file__).parent / "starter"
_LOOKED_AT = 8
"""Records of a shard that are looked at when it is opened: one good one is enough."""

type Batch = dict[Kind, dict[str, np.ndarray]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """An example as it is stored; see the table above."""

    id: str
    image: bytes = b""
    captions: tuple[str, ...] = ()
    label_name: str = ""
    title: str = ""
    group: str = ""
    source: str = ""
    creator: str = ""
    license: str = ""


_FIELDS = tuple(field.name for field in dataclasses.fields(Record))


class DamagedRecordError(RuntimeError):
    """A record whose bytes are damaged where they lie: another one is to take its place."""


def encode_record(record: Record) -> bytes:
    """Packs a record; equal records give equal bytes."""
    fields = ((name, getattr(record, name)) for name in _FIELDS)
    return msgpack.Packer().pack(
        {"version": VERSION, **{name: value for name, value in fields if value}}
    )


def decode_record(data: bytes) -> Record:
    """Unpacks a record. Fields unknown to this version's table are ignored.

    Raises:
        UserError: the record has another version.
        ValueError: the bytes are no record; `UnicodeDecodeError` if a text in it is not UTF-8.
    """
    try:
        fields: dict[str, Any] = msgpack.unpackb(data)
    except UnicodeDecodeError:
        raise
    except ValueError as error:
        raise ValueError(f"not a record: {type(error).__name__} {error}") from error
    if not isinstance(fields, dict) or not isinstance(fields.get("id"), str):
        raise ValueError("not a record: no msgpack map with an `id`")
    version = fields.get("version")
    require(
        version == VERSION,
        f"record {fields['id']} has version = {version}, this program reads {VERSION}. "
        "Make the shards again with this version's tools, or use the version that wrote them.",
    )
    known = {name: fields[name] for name in _FIELDS if name in fields}
    for name, value in known.items():
        if not _has_its_type(name, value):
            raise ValueError(f"not a record: {name} is of type {type(value).__name__}")
    known["captions"] = tuple(known.get("captions", ()))
    return Record(**known)


def _has_its_type(name: str, value: Any) -> bool:
    if name == "captions":
        return isinstance(value, list) and all(isinstance(text, str) for text in value)
    return isinstance(value, bytes if name == "image" else str)


def resolve(pattern: str) -> list[str]:
    """Returns the files that a glob names, sorted; `starter/...` names the set in the package.

    Raises:
        UserError: no file matches, or a shard of a numbered set is missing.
    """
    path = locate(pattern)
    # The package may be installed in a folder whose name looks like a glob.
    if path.startswith(str(STARTER)):
        path = glob.escape(str(STARTER)) + path.removeprefix(str(STARTER))
    paths = sorted(path for path in glob.glob(path) if os.path.isfile(path))
    require(
        bool(paths),
        f"shards = {pattern} matches no file. Check the path (relative ones start at "
        f"{os.getcwd()}), or use 'starter/train-*', the set that ships with the package.",
    )
    _require_whole_set(pattern, paths)
    return paths


def _require_whole_set(pattern: str, paths: Sequence[str]) -> None:
    """Refuses a set of `NAME-00000-of-0000N` files with some missing, unless the pattern itself
    chooses among them.
    """
    if re.search(r"-\d|\[", os.path.basename(pattern)):
        return
    found: dict[tuple[str, str], set[int]] = {}
    for path in paths:
        numbered = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})(\..*)?", path)
        if numbered:
            found.setdefault((numbered[1], numbered[3]), set()).add(int(numbered[2]))
    for (name, total), numbers in found.items():
        missing = sorted(set(range(int(total))) - numbers)
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise UserError(
                f"shards = {pattern} lacks {name}-{missing[0]:05d}-of-{total}{more}. Copy or make it again, or name "
                "the ones that you mean (train-0000[0-3]-of-00008*)."
            )


def locate(path: str) -> str:
    """Returns a path or glob with `starter/` and `~` replaced by the folders they stand for."""
    folder, _, rest = path.partition("/")
    return str(STARTER / rest) if folder == "starter" and rest else os.path.expanduser(path)


class Shards:
    """The records of some ArrayRecord files, by index, in the files' order.

    Thread-safe. Pickles small: files are opened again, on first use, where it is unpickled.
    """

    def __init__(self, paths: Sequence[str], counts: Sequence[int]):
        """Takes files that were looked at before: use `open_shards`.

        Args:
            paths: ArrayRecord files.
            counts: Records of each.
        """
        self.paths, self.counts = tuple(paths), tuple(counts)
        # With the counts given no file is opened before it is needed.
        self._source = ArrayRecordDataSource(
            [f"{path}[0:{n}]" for path, n in zip(paths, counts, strict=True)]
        )
        self._ends = tuple(itertools.accumulate(counts))
        self._sizes = tuple(os.path.getsize(path) for path in paths)

    def __len__(self) -> int:
        return self._ends[-1]

    def __iter__(self) -> Iterator[Record]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: int) -> Record:
        """Reads one record.

        Raises:
            DamagedRecordError: the record's bytes are damaged; names file and record.
            RuntimeError: the file is gone, was changed or cannot be read at all; names it.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        try:
            return decode_record(self._source[index])
        except (RuntimeError, ValueError) as error:
            self._require_unchanged(index, error)
            raise DamagedRecordError(
                f"{self.place(index)} cannot be read ({error}). Copy or make this shard again."
            ) from error

    def undamaged(self, indices: Iterable[int]) -> Iterator[Record]:
        """Yields records, passing over damaged ones: for looks and statistics, not for training.

        Raises:
            RuntimeError: as for a single record.
        """
        for index in indices:
            with contextlib.suppress(DamagedRecordError):
                yield self[index]

    def _require_unchanged(self, index: int, error: RuntimeError | ValueError) -> None:
        """Raises unless a failed read is of damaged bytes: what a disk or another program did is no
        damage.
        """
        shard = bisect.bisect_right(self._ends, index)
        path, size = self.paths[shard], self._sizes[shard]
        try:
            now = os.path.getsize(path)
        except OSError as cause:
            raise RuntimeError(
                f"{path} is gone ({cause.strerror}); it was there at the start. Put it back, and start again."
            ) from None
        if now != size:
            # Of a file that is open and gets shorter, ArrayRecord makes empty records.
            raise RuntimeError(
                f"{path} has {now:,} bytes now, {size:,} at the start: it was changed meanwhile. "
                "Put the old file back, and start again."
            )
        # ArrayRecord has one class for all; these are the words for bytes that do not fit their
        # checksum.
        if isinstance(error, RuntimeError) and not str(error).startswith(("Corrupted", "Invalid")):
            raise RuntimeError(
                f"{path} cannot be read ({str(error)[:120]}). Look after the disk, and start again."
            )

    def name_counts(self) -> list[list[str | int]]:
        """Returns file name and number of records of each shard, ready for JSON."""
        return [
            [os.path.basename(path), n] for path, n in zip(self.paths, self.counts, strict=True)
        ]

    def starts(self) -> list[int]:
        """Returns the index of each shard's first record."""
        return [0, *self._ends[:-1]]

    def place(self, index: int) -> str:
        """Returns where a record lies, for messages."""
        shard = bisect.bisect_right(self._ends, index)
        return f"{self.paths[shard]}, record {index - self._ends[shard] + self.counts[shard]}"


def open_shards(pattern: str) -> Shards:
    """Opens the shards that a glob names, after a look into each.

    Raises:
        UserError: no file matches; or files are no ArrayRecord, cut short, empty, or of another
            record
            version. Names them.
    """
    paths = resolve(pattern)
    counts, faults = [], []
    for path in paths:
        try:
            source = ArrayRecordDataSource([path])
            counts.append(len(source))
            if len(source) == 0:
                faults.append(f"{path} holds no records. Remove it, or make it again.")
            else:
                _require_records(source)
        except UserError as error:
            faults.append(f"{path}: {error}")
        except (RuntimeError, ValueError) as error:
            # Which of these it is, ArrayRecord cannot tell; at times it says nothing at all.
            reason = (
                str(error).partition("\n")[0].partition(";")[0] or "no readable index at its end"
            )
            reason = textwrap.shorten(reason, 80, placeholder=" ...")
            faults.append(
                f"{path} is no ArrayRecord shard, or was cut short ({reason}). Copy it or make it again, "
                "or point the pattern at shards only."
            )
    if faults:
        more = (
            [f"... and {len(faults) - 2} more of the {len(paths)} files of {pattern}"]
            if len(faults) > 2
            else []
        )
        raise UserError("\n".join([*faults[:2], *more]))
    return Shards(paths, counts)


def _require_records(source: ArrayRecordDataSource) -> None:
    """Raises what is wrong with the first record, if the next ones are not good either."""
    first: RuntimeError | ValueError | None = None
    for index in range(min(_LOOKED_AT, len(source))):
        try:
            decode_record(source[index])
            return
        except UserError:
            raise
        except (RuntimeError, ValueError) as error:
            first = first or error
    if first is not None:
        raise first


def write_shards(
    folder: pathlib.Path, name: str, records: Sequence[Record], *, num_shards: int = 1
) -> list[str]:
    """Writes `NAME-00000-of-0000N.array_record` files, in order, and returns their paths.

    Deterministic. A file appears under its name only when it is complete.
    """
    paths = []
    for shard in range(num_shards):
        path = folder / f"{name}-{shard:05d}-of-{num_shards:05d}.array_record"
        part = records[
            shard * len(records) // num_shards : (shard + 1) * len(records) // num_shards
        ]
        write_shard(path, part, "group_size:1,zstd:19")
        paths.append(str(path))
    return paths


def write_shard(path: pathlib.Path, records: Iterable[Record], options: str) -> int:
    """Writes one shard, in order, and returns its number of records; complete under its name, or
    not there.

    Args:
        path: The shard's file.
        records: Taken one at a time.
        options: Of ArrayRecord's writer.
    """
    count = 0
    with atomic_path(path) as unfinished:
        writer = ArrayRecordWriter(str(unfinished), options)
        for record in records:
            writer.write(encode_record(record))
            count += 1
        writer.close()
    return count
