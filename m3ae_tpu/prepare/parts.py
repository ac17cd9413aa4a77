"""The parts of a collection: pieces small enough to redo, each with the reader that fits its
content.
"""

import concurrent.futures
import dataclasses
import functools
import json
import os
from collections.abc import Iterable, Iterator

from m3ae_tpu.errors import UserError, require
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
from m3ae_tpu.prepare.samples import Format, Sample, file_format, file_system, is_remote

IMAGES_IN_A_PART = 1_000
TEXTS_IN_A_PART = 100_000
_STATISTICS = "_stats.json"
"""End of the names of what img2dataset counted."""
_TEXT_ENDINGS = ("txt", "json", "jsonl", "csv", "tsv", "md")
_OPENED_AT_ONCE = 32
"""Files that are looked into at the same time: those of a remote store take their time."""


type Group = tuple[Format, tuple[str, ...]]
"""Files that are read together, and how."""


@dataclasses.dataclass(frozen=True)
class Part:
    """Files that are read one after the other, or a piece of one."""

    format: Format
    urls: tuple[str, ...]
    sizes: tuple[int, ...]
    """Bytes of each file: a changed one makes another part."""
    start: int = 0
    """Where the piece begins: a row of HDF5, a row group of parquet, a byte of a table."""
    stop: int | None = None
    """Where it ends; None is the end of the file."""
    first_row: int = 0
    """Number of a table's row at `start`."""
    prefix: str = ""
    """Of the names of HDF5 arrays."""

    def samples(self) -> Iterator[Sample]:
        """Yields what the part holds, in order."""
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
            case "passed over":
                return iter([])

    def key(self) -> str:
        """Returns a text that tells this part from others, and from itself with other files."""
        return json.dumps(dataclasses.astuple(self))


def find_parts(inputs: list[str], kind: str) -> list[Part]:
    """Lists the parts of files and folders, also remote ones; formats are told by content.

    Of a folder with tars, parquet or HDF5 files, other tables (img2dataset's lists and statistics)
    are passed over, unless they name images. Loose images are read by such lists if there are any;
    with none, every file but texts counts as an image. What is passed over is a part without
    samples. `FILE#train` names the arrays `train_jpg` and so on of an HDF5 file.

    Raises:
        UserError: an input does not exist, holds nothing to read, or holds addresses instead of
            images.
    """
    require(bool(inputs), "--input is empty. Name files or folders.")
    parts: list[Part] = []
    seen: dict[str, set[str]] = {}
    for given in inputs:
        given, prefix = _without_prefix(given)
        found = _files(given)
        require(
            bool(found), f"--input = {given} does not exist or is an empty folder. Check the path."
        )
        twice = [url for url in found if url in seen and (not prefix or {prefix, ""} & seen[url])]
        require(
            not twice,
            f"--input = {given} names {min(twice, default='')} a second time. Name each file once.",
        )
        for url in found:
            seen.setdefault(url, set()).add(prefix)
        with concurrent.futures.ThreadPoolExecutor(_OPENED_AT_ONCE) as threads:
            formats = dict(zip(found, threads.map(file_format, found), strict=True))
        formats |= {
            url: "table" for url in found if not found[url] and _ending(url) in _TEXT_ENDINGS
        }
        for format, urls in _groups(formats, given, kind):
            whole = Part(format, urls, tuple(found[url] for url in urls), prefix=prefix)
            parts += _pieces(whole, kind)
        rest = tuple(_passed_over(formats, parts, kind))
        if rest:
            parts.append(Part("passed over", rest, tuple(found[url] for url in rest)))
    return parts


def _passed_over(formats: dict[str, Format], parts: list[Part], kind: str) -> list[str]:
    """Returns what no part reads: neither itself, nor as a text beside an image, nor as an image
    that a list names.
    """
    read = {url for part in parts for url in part.urls}
    if kind != "text" and "image" in formats.values():
        lists = {part.urls[0] for part in parts if part.format == "table"}
        read |= {name for url in lists for name in named_files(url)}
    stems = {os.path.splitext(url)[0] for url in read}
    return [
        url
        for url in formats
        if url not in read
        and not (url.endswith(SIDECAR_ENDINGS) and os.path.splitext(url)[0] in stems)
    ]


def count_files(parts: Iterable[Part]) -> dict[str, dict[str, int]]:
    """Returns, by format, how many files the parts read and how many bytes these hold."""
    sizes: dict[str, dict[str, int]] = {}
    for part in parts:
        sizes.setdefault(part.format, {}).update(zip(part.urls, part.sizes, strict=True))
    return {
        format: {"files": len(files), "bytes": sum(files.values())}
        for format, files in sorted(sizes.items())
    }


def _without_prefix(given: str) -> tuple[str, str]:
    """Splits `FILE#train` into file and prefix of the arrays."""
    path, mark, prefix = given.rpartition("#")
    return (path, f"{prefix}_") if mark and not os.path.exists(given) else (given, "")


def _groups(formats: dict[str, Format], given: str, kind: str) -> list[Group]:
    """Returns the files of each part, and how they are read."""
    by_format: dict[Format, list[str]] = {}
    for url, format in formats.items():
        by_format.setdefault(format, []).append(url)
    tables = [url for url in by_format.get("table", []) if not url.endswith(_STATISTICS)]
    in_containers = _holds_container(by_format, kind)
    holds = (
        {url: table_holds(url, kind) for url in tables}
        if by_format.get("image") or not in_containers
        else {}
    )
    lists = [url for url in tables if holds.get(url) == "images" and kind != "text"]
    found = _each("table", lists)
    if in_containers and not (kind == "text" and not by_format.get("tar")):
        # Beside tars, img2dataset leaves the list of what it downloaded.
        parquet = by_format.get("parquet", [])
        if by_format.get("tar"):
            parquet = [] if kind == "text" else [url for url in parquet if holds_images(url)]
        found += [
            *_each("tar", by_format.get("tar", [])),
            *_each("hdf5", by_format.get("hdf5", [])),
        ]
        found += _each("parquet", parquet)
        if lists:
            return found
        endings = {_ending(url) for _, (url,) in found}
        unknown = [
            *by_format.get("unknown", []),
            *(url for url in tables if _ending(url) in endings),
        ]
        images = [] if kind == "text" else _in_groups(by_format.get("image", []))
        return [*found, *images, *_each("unknown", unknown)]
    if lists:
        return found
    if kind == "text":
        require(
            bool(tables or by_format.get("parquet") or by_format.get("hdf5")),
            f"--input = {given} holds no text to read. Give plain text, JSON lines, CSV or parquet.",
        )
        by_format["table"] = tables
        read: tuple[Format, ...] = ("table", "parquet", "hdf5", "unknown")
        return [group for format in read for group in _each(format, by_format.get(format, []))]
    # What is no text is taken for an image, a damaged one too: it is dropped with its reason, not
    # passed over.
    rows = [
        *_each("parquet", by_format.get("parquet", [])),
        *_each("hdf5", by_format.get("hdf5", [])),
    ]
    images = sorted(set(formats) - _texts(formats) - {url for _, (url,) in rows})
    require(
        bool(images or rows) or "addresses" not in holds.values(),
        f"--input = {given} holds addresses of images, not images. Download them first: "
        "img2dataset --url_list=FILE --output_format=webdataset.",
    )
    require(
        bool(images or rows),
        f"--input = {given} holds no images. Give a folder of images, tars, parquet or HDF5.",
    )
    return [*rows, *_in_groups(images)]


def _holds_container(by_format: dict[Format, list[str]], kind: str) -> bool:
    """Returns whether there is an archive, or a file of rows that opens: a damaged file that
    happens to start like one must not decide how the others are read."""
    return (
        bool(by_format.get("tar"))
        or any(parquet_row_groups(url, kind) for url in by_format.get("parquet", []))
        or any(hdf5_rows(url) for url in by_format.get("hdf5", []))
    )


def _each(format: Format, urls: list[str]) -> list[Group]:
    return [(format, (url,)) for url in urls]


def _in_groups(images: list[str]) -> list[Group]:
    starts = range(0, len(images), IMAGES_IN_A_PART)
    return [("image", tuple(images[start : start + IMAGES_IN_A_PART])) for start in starts]


def _ending(url: str) -> str:
    return url.rpartition(".")[2].lower()


def _texts(formats: dict[str, Format]) -> set[str]:
    """Returns what is named and looks like a text, or is named like one that lies beside an image."""
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


def _pieces(part: Part, kind: str) -> list[Part]:
    """Cuts a part of many rows into some that are worth a process each."""
    url, step = part.urls[0], TEXTS_IN_A_PART if kind == "text" else IMAGES_IN_A_PART
    piece = functools.partial(dataclasses.replace, part)
    if part.format == "table":
        return [
            piece(start=start, stop=stop, first_row=row)
            for start, stop, row in table_spans(url, step)
        ]
    if part.format == "parquet":
        starts, rows = [0], 0
        for group, count in enumerate(parquet_row_groups(url, kind)):
            if rows >= step:
                starts.append(group)
                rows = 0
            rows += count
        return [piece(start=a, stop=b) for a, b in zip(starts, [*starts[1:], None], strict=True)]
    if part.format == "hdf5":
        counts = hdf5_rows(url)
        prefix = part.prefix if part.prefix or len(counts) != 1 else next(iter(counts))
        if counts and prefix not in counts:
            names = ", ".join(f"{url}#{name.rstrip('_')}" for name in counts if name)
            what = f"has no set {part.prefix.rstrip('_')}" if part.prefix else "holds several sets"
            raise UserError(f"--input = {url} {what}. Name one: {names}.")
        starts = range(0, max(1, counts.get(prefix, 0)), 2 * step)
        return [
            piece(
                prefix=prefix,
                start=start,
                stop=None if start == starts[-1] else start + starts.step,
            )
            for start in starts
        ]
    return [part]


def _files(given: str) -> dict[str, int]:
    """Returns all files of a folder and those below it, or the file, sorted, with sizes; hidden
    ones are left out.
    """
    if not is_remote(given):
        return _local_files(given)
    system, root = file_system(given)
    found = system.find(root, detail=True)
    return {
        str(system.unstrip_protocol(name)): int(found[name].get("size") or 0)
        for name in sorted(found)
        if not any(part.startswith(".") for part in name[len(root) :].split("/"))
    }


def _local_files(given: str) -> dict[str, int]:
    path = os.path.abspath(os.path.expanduser(given))
    if os.path.isfile(path):
        return {path: os.path.getsize(path)}
    found: dict[str, int] = {}
    visited: set[str] = set()
    for folder, folders, names in os.walk(path, followlinks=True):
        # A link may lead back to where the walk came from.
        real = os.path.realpath(folder)
        again = real in visited
        folders[:] = [] if again else sorted(name for name in folders if not name.startswith("."))
        for name in [] if again else names:
            url = os.path.join(folder, name)
            if not name.startswith(".") and (os.path.isfile(url) or os.path.islink(url)):
                found[url] = os.path.getsize(url) if os.path.exists(url) else 0
        visited.add(real)
    return dict(sorted(found.items()))
