"""Pieces of a collection: units of work small enough to repeat, each of one format."""

import collections
import concurrent.futures
import dataclasses
import functools
import json
import os
from collections.abc import Iterator, Mapping

from m3ae_tpu.errors import UserError, require
from m3ae_tpu.prepare.opening import Format, file_format, file_system, is_remote
from m3ae_tpu.prepare.readers.archives import read_tar
from m3ae_tpu.prepare.readers.hdf5 import hdf5_rows, read_hdf5
from m3ae_tpu.prepare.readers.parquet import holds_images, parquet_row_groups, read_parquet
from m3ae_tpu.prepare.readers.tables import (
    SIDECAR_ENDINGS,
    named_files,
    read_image_files,
    read_table,
    table_holds,
    table_spans,
)
from m3ae_tpu.prepare.samples import Sample

IMAGES_PER_PIECE = 1_000
TEXTS_PER_PIECE = 100_000
_STATISTICS = "_stats.json"
"""End of the names of the statistics that img2dataset leaves."""
_TEXT_ENDINGS = ("txt", "json", "jsonl", "csv", "tsv", "md")
_OPENED_AT_ONCE = 32
"""Files whose format is looked up at the same time: a remote store answers slowly."""

type Group = tuple[Format, tuple[str, ...]]
"""Files that are read together, and their format."""
type Formats = collections.defaultdict[Format, list[str]]
"""The files of an input by format."""
type RowCounts = Mapping[str, int]
"""Numbers of rows of an HDF5 file by prefix of its arrays; empty for a damaged file."""


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
            case "unknown":
                return iter([Sample(place=url, fault="unknown file format")])

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
    ignored: dict[str, int] = {}
    prefixes: dict[str, set[str]] = {}
    for given in inputs:
        path, prefix = _split_prefix(given)
        sizes = _files(path)
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
        formats = _formats(sizes)
        hdf5 = {url: hdf5_rows(url) for url, format in formats.items() if format == "hdf5"}
        for format, urls in _groups(formats, hdf5, path, kind):
            whole = Piece(format, urls, tuple(sizes[url] for url in urls), prefix=prefix)
            pieces += _split(whole, hdf5.get(urls[0], {}), kind)
        ignored |= {url: sizes[url] for url in _ignored(formats, pieces, kind)}
    return Collection(pieces=tuple(pieces), ignored=ignored)


def _split_prefix(given: str) -> tuple[str, str]:
    """Splits `FILE#train` into file and prefix of the arrays."""
    path, mark, prefix = given.rpartition("#")
    return (path, f"{prefix}_") if mark and not os.path.exists(given) else (given, "")


def _formats(sizes: Mapping[str, int]) -> dict[str, Format]:
    with concurrent.futures.ThreadPoolExecutor(_OPENED_AT_ONCE) as threads:
        formats = dict(zip(sizes, threads.map(file_format, sizes), strict=True))
    # An empty file has no content to recognise.
    empty_texts: dict[str, Format] = {
        url: "table" for url, size in sizes.items() if not size and _ending(url) in _TEXT_ENDINGS
    }
    return formats | empty_texts


def _ignored(formats: Mapping[str, Format], pieces: list[Piece], kind: str) -> list[str]:
    """Returns the files that are neither read, nor a text beside an image, nor named by a table."""
    read = {url for piece in pieces for url in piece.urls}
    if kind != "text" and "image" in formats.values():
        tables = {piece.urls[0] for piece in pieces if piece.format == "table"}
        read |= {name for url in tables for name in named_files(url)}
    stems = {os.path.splitext(url)[0] for url in read}
    return [
        url
        for url in formats
        if url not in read
        and not (url.endswith(SIDECAR_ENDINGS) and os.path.splitext(url)[0] in stems)
    ]


def _groups(
    formats: Mapping[str, Format], hdf5: Mapping[str, RowCounts], given: str, kind: str
) -> list[Group]:
    """Returns the files of an input that are read, in groups."""
    by_format: Formats = collections.defaultdict(list)
    for url, format in formats.items():
        by_format[format].append(url)
    tables = [url for url in by_format["table"] if not url.endswith(_STATISTICS)]
    has_containers = _has_containers(by_format, hdf5, kind)
    needs_tables = bool(by_format["image"]) or not has_containers
    holds = {url: table_holds(url, kind) for url in tables} if needs_tables else {}
    lists = [url for url in tables if holds.get(url) == "images" and kind != "text"]
    if has_containers and (kind != "text" or by_format["tar"]):
        containers = _container_groups(by_format, kind)
        if lists:
            return [*_each("table", lists), *containers]
        return [*containers, *_groups_beside(containers, by_format, tables, kind)]
    if lists:
        return _each("table", lists)
    if kind == "text":
        return _text_groups(by_format, tables, given)
    return _image_groups(formats, by_format, "addresses" in holds.values(), given)


def _has_containers(by_format: Formats, hdf5: Mapping[str, RowCounts], kind: str) -> bool:
    """Returns whether there is an archive, or a file of rows that opens.

    A damaged file that starts like one must not decide how the others are read.
    """
    return (
        bool(by_format["tar"])
        or any(parquet_row_groups(url, kind) for url in by_format["parquet"])
        or any(hdf5.values())
    )


def _container_groups(by_format: Formats, kind: str) -> list[Group]:
    """Returns tars, parquet and HDF5 files, without the parquet lists that img2dataset leaves."""
    parquet = by_format["parquet"]
    if by_format["tar"]:
        parquet = [] if kind == "text" else [url for url in parquet if holds_images(url)]
    return [
        *_each("tar", by_format["tar"]),
        *_each("hdf5", by_format["hdf5"]),
        *_each("parquet", parquet),
    ]


def _groups_beside(
    containers: list[Group], by_format: Formats, tables: list[str], kind: str
) -> list[Group]:
    """Returns loose images, and files that should be containers by their ending or are unknown."""
    endings = {_ending(url) for _, (url,) in containers}
    unknown = [*by_format["unknown"], *(url for url in tables if _ending(url) in endings)]
    images = [] if kind == "text" else _image_pieces(by_format["image"])
    return [*images, *_each("unknown", unknown)]


def _text_groups(by_format: Formats, tables: list[str], given: str) -> list[Group]:
    require(
        bool(tables or by_format["parquet"] or by_format["hdf5"]),
        f"--input = {given} holds no text to read. Give plain text, JSON lines, CSV or parquet.",
    )
    return [
        *_each("table", tables),
        *_each("parquet", by_format["parquet"]),
        *_each("hdf5", by_format["hdf5"]),
        *_each("unknown", by_format["unknown"]),
    ]


def _image_groups(
    formats: Mapping[str, Format], by_format: Formats, has_addresses: bool, given: str
) -> list[Group]:
    """Returns files of rows and loose images.

    Every file that is not a text counts as an image: a damaged one is then dropped with its reason.
    """
    rows = [*_each("parquet", by_format["parquet"]), *_each("hdf5", by_format["hdf5"])]
    images = sorted(set(formats) - _texts(formats) - {url for _, (url,) in rows})
    require(
        bool(images or rows) or not has_addresses,
        f"--input = {given} holds addresses of images, not images. Download them first: "
        "img2dataset --url_list=FILE --output_format=webdataset.",
    )
    require(
        bool(images or rows),
        f"--input = {given} holds no images. Give a folder of images, tars, parquet or HDF5.",
    )
    return [*rows, *_image_pieces(images)]


def _each(format: Format, urls: list[str]) -> list[Group]:
    return [(format, (url,)) for url in urls]


def _image_pieces(images: list[str]) -> list[Group]:
    starts = range(0, len(images), IMAGES_PER_PIECE)
    return [("image", tuple(images[start : start + IMAGES_PER_PIECE])) for start in starts]


def _ending(url: str) -> str:
    return url.rpartition(".")[2].lower()


def _texts(formats: Mapping[str, Format]) -> set[str]:
    """Returns the texts: files named like one that are a table, or that lie beside an image."""
    named = {url for url in formats if _ending(url) in _TEXT_ENDINGS}
    stems = {
        os.path.splitext(url)[0] for url in formats if url not in named or formats[url] == "image"
    }
    return {
        url
        for url in named
        if formats[url] == "table"
        or (formats[url] == "unknown" and os.path.splitext(url)[0] in stems)
    }


def _split(whole: Piece, counts: RowCounts, kind: str) -> list[Piece]:
    """Splits a file of many rows into pieces, each worth a process.

    Args:
        whole: The file, or loose images, as one piece.
        counts: Numbers of rows, if it is an HDF5 file.
        kind: Kind of the samples.
    """
    url, step = whole.urls[0], TEXTS_PER_PIECE if kind == "text" else IMAGES_PER_PIECE
    piece = functools.partial(dataclasses.replace, whole)
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


def _files(given: str) -> dict[str, int]:
    """Returns the sizes of a file, or of all files below a folder that are not hidden, sorted."""
    if not is_remote(given):
        return _local_files(given)
    system, root = file_system(given)
    found = system.find(root, detail=True)
    return {
        str(system.unstrip_protocol(name)): int(found[name].get("size") or 0)
        for name in sorted(found)
        if not any(folder.startswith(".") for folder in name[len(root) :].split("/"))
    }


def _local_files(given: str) -> dict[str, int]:
    path = os.path.abspath(os.path.expanduser(given))
    if os.path.isfile(path):
        return {path: os.path.getsize(path)}
    found: dict[str, int] = {}
    visited: set[str] = set()
    for folder, folders, names in os.walk(path, followlinks=True):
        # A link may lead back to a folder that was visited.
        real = os.path.realpath(folder)
        is_again = real in visited
        folders[:] = [] if is_again else sorted(name for name in folders if name[0] != ".")
        for name in [] if is_again else names:
            url = os.path.join(folder, name)
            if not name.startswith(".") and (os.path.isfile(url) or os.path.islink(url)):
                found[url] = os.path.getsize(url) if os.path.exists(url) else 0
        visited.add(real)
    return dict(sorted(found.items()))
