"""Pieces of a collection: units of work small enough to repeat, each of one format."""

import dataclasses
import functools
import json
import os
from collections.abc import Iterator, Mapping

from m3ae_tpu.errors import UserError, require
from m3ae_tpu.prepare.formats import Format, unread_file
from m3ae_tpu.prepare.inputs import (
    Group,
    RowCounts,
    choose_files,
    find_formats,
    ignored_files,
    list_files,
)
from m3ae_tpu.prepare.readers.archives import read_tar
from m3ae_tpu.prepare.readers.hdf5 import hdf5_rows, read_hdf5
from m3ae_tpu.prepare.readers.parquet import parquet_row_groups, read_parquet
from m3ae_tpu.prepare.readers.tables import read_image_files, read_table, table_spans
from m3ae_tpu.prepare.samples import Fault, Sample

IMAGES_PER_PIECE = 1_000
TEXTS_PER_PIECE = 100_000


@dataclasses.dataclass(frozen=True)
class Piece:
    """Files that are read one after the other, or a range of one file."""

    format: Format
    urls: tuple[str, ...]
    sizes: tuple[int, ...]
    """Bytes of each file. A file of another size makes another piece."""
    start: int = 0
    """Start of the range: a row of HDF5, a row group of parquet, a byte of a table."""
    stop: int | None = None
    """End of the range; None is the end of the file."""
    first_row: int = 0
    """Number of a table's row at `start`."""
    prefix: str = ""
    """Start of the names of HDF5 arrays."""

    def samples(self) -> Iterator[Sample]:
        """Yields the samples of the piece, in order."""
        url = self.urls[0]
        match self.format:
            case "image":
                return read_image_files(self.urls)
            case "tar":
                return read_tar(url)
            case "parquet":
                return read_parquet(url, self.start, self.stop)
            case "hdf5":
                return read_hdf5(url, self.prefix, self.start, self.stop)
            case "table":
                return read_table(url, self.start, self.stop, self.first_row)
            case "unread" | "unknown":
                return iter([Sample(place=url, fault=Fault(*unread_file(url)))])

    def key(self) -> str:
        """Returns a text that identifies the piece: equal pieces of equal files have equal ones."""
        return json.dumps(dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collection:
    """Input of a preparation: its pieces, and the files that are not read."""

    pieces: tuple[Piece, ...]
    """Units of work, in the order of the input."""
    ignored: Mapping[str, int]
    """Bytes of each file that is not read, such as the statistics beside img2dataset's tars."""

    def count_files(self) -> dict[str, dict[str, int]]:
        """Returns numbers and bytes of files by format, for the manifest.

        Files that are not read count as `passed over`.
        """
        sizes: dict[str, dict[str, int]] = {}
        for piece in self.pieces:
            files = zip(piece.urls, piece.sizes, strict=True)
            sizes.setdefault(piece.format, {}).update(files)
        if self.ignored:
            sizes["passed over"] = dict(self.ignored)
        return {
            format: {"files": len(files), "bytes": sum(files.values())}
            for format, files in sorted(sizes.items())
        }


def find_pieces(inputs: list[str], kind: str) -> Collection:
    """Lists the pieces of files and folders, local or remote. Formats are recognised by content.

    In a folder with tars, parquet or HDF5 files, tables are ignored unless they name images: they
    are img2dataset's lists and statistics. Tables that name images decide which loose images are
    read; without such a table, every file that is not a text counts as an image. `FILE#train`
    selects the arrays `train_jpg` and so on of an HDF5 file.

    Raises:
        UserError: an input does not exist, holds nothing to read, or holds addresses instead of
            images.
    """
    require(bool(inputs), "--input is empty. Name files or folders.")
    pieces: list[Piece] = []
    groups: list[Group] = []
    ignored: dict[str, int] = {}
    prefixes: dict[str, set[str]] = {}
    for given in inputs:
        path, prefix = _split_prefix(given)
        sizes = list_files(path)
        require(
            bool(sizes), f"--input = {path} does not exist or is an empty folder. Check the path."
        )
        twice = [
            url for url in sizes if url in prefixes and (not prefix or {prefix, ""} & prefixes[url])
        ]
        require(
            not twice,
            f"--input = {path} names {min(twice, default='')} a second time. Name each file once.",
        )
        for url in sizes:
            prefixes.setdefault(url, set()).add(prefix)
        formats = find_formats(sizes)
        hdf5 = {url: hdf5_rows(url) for url, format in formats.items() if format == "hdf5"}
        chosen = choose_files(formats, hdf5, path, kind)
        for format, urls in chosen:
            whole = Piece(format, urls, tuple(sizes[url] for url in urls), prefix=prefix)
            pieces += _split(whole, hdf5.get(urls[0], {}), kind)
        groups += chosen
        ignored |= {url: sizes[url] for url in ignored_files(formats, groups, kind)}
    return Collection(pieces=tuple(pieces), ignored=ignored)


def _split_prefix(given: str) -> tuple[str, str]:
    """Splits `FILE#train` into file and prefix of the arrays."""
    path, mark, prefix = given.rpartition("#")
    return (path, f"{prefix}_") if mark and not os.path.exists(given) else (given, "")


def _split(whole: Piece, counts: RowCounts, kind: str) -> list[Piece]:
    """Splits many images, or a file of many rows, into pieces that are each worth a process.

    Args:
        whole: The file, or loose images, as one piece.
        counts: Numbers of rows, if it is an HDF5 file.
        kind: Kind of the samples.
    """
    url, step = whole.urls[0], TEXTS_PER_PIECE if kind == "text" else IMAGES_PER_PIECE
    piece = functools.partial(dataclasses.replace, whole)
    if whole.format == "image":
        return [
            piece(urls=whole.urls[start : start + step], sizes=whole.sizes[start : start + step])
            for start in range(0, len(whole.urls), step)
        ]
    if whole.format == "table":
        return [
            piece(start=start, stop=stop, first_row=row)
            for start, stop, row in table_spans(url, step)
        ]
    if whole.format == "parquet":
        starts, rows = [0], 0
        for group, count in enumerate(parquet_row_groups(url, kind)):
            if rows >= step:
                starts.append(group)
                rows = 0
            rows += count
        return [piece(start=a, stop=b) for a, b in zip(starts, [*starts[1:], None], strict=True)]
    if whole.format == "hdf5":
        prefix = whole.prefix if whole.prefix or len(counts) != 1 else next(iter(counts))
        if counts and prefix not in counts:
            names = ", ".join(f"{url}#{name.rstrip('_')}" for name in counts if name)
            fault = (
                f"has no set {whole.prefix.rstrip('_')}" if whole.prefix else "holds several sets"
            )
            raise UserError(f"--input = {url} {fault}. Name one: {names}.")
        starts = range(0, max(1, counts.get(prefix, 0)), 2 * step)
        return [
            piece(
                prefix=prefix,
                start=start,
                stop=None if start == starts[-1] else start + starts.step,
            )
            for start in starts
        ]
    return [whole]
