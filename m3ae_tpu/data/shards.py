"""ArrayRecord files of records, read by index and written in order.

Shards are written with `group_size:1`: one record is read without decompressing its neighbours.
"""

import bisect
import concurrent.futures
import contextlib
import functools
import hashlib
import itertools
import pathlib
import textwrap
from collections.abc import Iterable, Iterator, Sequence

from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter

from m3ae_tpu.data.identity import ShardIdentity, identify
from m3ae_tpu.data.manifest import resolve, shard_name
from m3ae_tpu.data.records import Record, decode_record, encode_record
from m3ae_tpu.errors import DataError, UserError
from m3ae_tpu.files import atomic_path, is_remote
from m3ae_tpu.storage.places import num_bytes

_NUM_THREADS = 32
"""Shards opened at once: where they are remote, most of the time is waiting."""
_NUM_CHECKED = 8
"""Records of a shard that are tried when it is opened, until one is good."""


class DamagedRecordError(DataError):
    """Bytes of one record that are damaged where they lie; other records can be read."""


class Shards:
    """The records of some ArrayRecord files, by index, in the files' order.

    Thread-safe. Pickles without open files: the copy opens each on its first use.
    """

    def __init__(self, pattern: str, paths: Sequence[str], files: Sequence[ArrayRecordDataSource]):
        """Takes the files of a glob, opened: use `open_shards`."""
        self.pattern = pattern
        self.paths, self._files = tuple(paths), tuple(files)
        self.counts = tuple(len(file) for file in files)
        self._ends = tuple(itertools.accumulate(self.counts))
        with concurrent.futures.ThreadPoolExecutor(_NUM_THREADS) as pool:
            self._sizes = tuple(pool.map(num_bytes, self.paths))

    def __len__(self) -> int:
        return self._ends[-1]

    def __iter__(self) -> Iterator[Record]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: int) -> Record:
        """Reads one record.

        Raises:
            DamagedRecordError: the record's bytes are damaged; names file and record.
            UserError: the record has another version.
            DataError: the file is gone, was changed or cannot be read at all; names it.
        """
        shard, number = self._locate(index)
        try:
            return decode_record(self._files[shard][number])
        except UserError:  # Of another version: not damaged, and no substitute for it.
            raise
        except (RuntimeError, ValueError) as error:
            self._require_intact_file(shard, error)
            raise DamagedRecordError(
                f"{self.place(index)} cannot be read ({error}). Copy or make this shard again."
            ) from error

    def undamaged(self, indices: Iterable[int]) -> Iterator[Record]:
        """Yields records without the damaged ones: for displays and statistics, not for training.

        Raises:
            DataError: as for a single record.
        """
        for index in indices:
            with contextlib.suppress(DamagedRecordError):
                yield self[index]

    @functools.cached_property
    def identities(self) -> list[ShardIdentity]:
        """Identity of each shard, computed on first use by a few reads of each file."""
        return identify(self.paths, self.counts)

    @property
    def digest(self) -> str:
        """Digest of the whole set by its shards' contents, in order: 16 hexadecimal digits."""
        contents = " ".join(shard.content for shard in self.identities)
        return hashlib.sha256(contents.encode()).hexdigest()[:16]

    @property
    def is_remote(self) -> bool:
        """True where a read waits for a bucket."""
        return any(map(is_remote, self.paths))

    def starts(self) -> list[int]:
        """Returns the index of each shard's first record."""
        return [0, *self._ends[:-1]]

    def place(self, index: int) -> str:
        """Returns a record's file and number, for messages."""
        shard, number = self._locate(index)
        return f"{self.paths[shard]}, record {number}"

    def _locate(self, index: int) -> tuple[int, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard = bisect.bisect_right(self._ends, index)
        return shard, index - self._ends[shard] + self.counts[shard]

    def _require_intact_file(self, shard: int, error: RuntimeError | ValueError) -> None:
        """Raises `DataError` unless a failed read comes from damaged bytes alone."""
        path, size = self.paths[shard], self._sizes[shard]
        try:
            now = num_bytes(path)
        except OSError as cause:
            raise DataError(
                f"{path} is gone ({cause.strerror}); it was there at the start. "
                "Put it back, and start again."
            ) from None
        if now != size:
            # ArrayRecord reads empty records from an open file that was cut.
            raise DataError(
                f"{path} has {now:,} bytes now, {size:,} at the start: it was changed meanwhile. "
                "Put the old file back, and start again."
            )
        # ArrayRecord raises RuntimeError for everything; its messages about wrong checksums begin
        # with these words.
        if isinstance(error, RuntimeError) and not str(error).startswith(("Corrupted", "Invalid")):
            raise DataError(
                f"{path} cannot be read ({str(error)[:120]}). Check the disk or bucket, and start "
                "again."
            )


def open_shards(pattern: str) -> Shards:
    """Opens the shards that a glob names, and tries the first records of each.

    Raises:
        UserError: no file matches, or files are not ArrayRecord, cut short, empty, or of another
            record version. Names them.
    """
    paths = resolve(pattern)
    with concurrent.futures.ThreadPoolExecutor(_NUM_THREADS) as pool:
        opened = list(pool.map(_open, paths))
    files = [file for file in opened if not isinstance(file, str)]
    faults = [fault for fault in opened if isinstance(fault, str)]
    if faults:
        more = f"... and {len(faults) - 2} more of the {len(paths)} files of {pattern}"
        raise UserError("\n".join(faults[:2] + [more] * (len(faults) > 2)))
    return Shards(pattern, paths, files)


def _open(path: str) -> ArrayRecordDataSource | str:
    """Returns a shard, opened, or the reason why it cannot be used."""
    try:
        file = ArrayRecordDataSource([path])
        if len(file) == 0:
            return f"{path} holds no records. Remove it, or make it again."
        _require_records(file)
    except UserError as error:
        return f"{path}: {error}"
    except (RuntimeError, ValueError) as error:
        # ArrayRecord cannot tell these cases apart; some of its messages are empty.
        reason = str(error).partition("\n")[0].partition(";")[0] or "no readable index at its end"
        reason = textwrap.shorten(reason, 80, placeholder=" ...")
        return (
            f"{path} is not an ArrayRecord shard, or was cut short ({reason}). "
            "Copy it or make it again, or point the pattern at shards only."
        )
    return file


def _require_records(file: ArrayRecordDataSource) -> None:
    """Raises the first record's error if all of the first few have one."""
    first: RuntimeError | ValueError | None = None
    for number in range(min(_NUM_CHECKED, len(file))):
        try:
            decode_record(file[number])
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
        path = folder / shard_name(name, shard, num_shards)
        first, end = (number * len(records) // num_shards for number in (shard, shard + 1))
        write_shard(path, records[first:end], "group_size:1,zstd:19")
        paths.append(str(path))
    return paths


def write_shard(path: pathlib.Path, records: Iterable[Record], options: str) -> int:
    """Writes one shard, in order, and returns its number of records.

    The file appears under its name only when it is complete.

    Args:
        path: The shard's file.
        records: Taken one at a time.
        options: Options of ArrayRecord's writer.
    """
    count = 0
    with atomic_path(path) as unfinished:
        writer = ArrayRecordWriter(str(unfinished), options)
        for record in records:
            writer.write(encode_record(record))
            count += 1
        writer.close()
    return count
