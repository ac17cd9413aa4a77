"""Files of an input: their formats, and the choice of those that are read."""

import collections
import concurrent.futures
import os
from collections.abc import Mapping, Sequence

from m3ae_tpu.errors import require
from m3ae_tpu.prepare.formats import Format, file_format
from m3ae_tpu.prepare.opening import file_system, is_remote
from m3ae_tpu.prepare.readers.parquet import holds_images, parquet_row_groups
from m3ae_tpu.prepare.readers.tables import SIDECAR_ENDINGS, named_files, table_holds

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


def list_files(given: str) -> dict[str, int]:
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


def find_formats(sizes: Mapping[str, int]) -> dict[str, Format]:
    """Returns the format of each file."""
    with concurrent.futures.ThreadPoolExecutor(_OPENED_AT_ONCE) as threads:
        formats = dict(zip(sizes, threads.map(file_format, sizes), strict=True))
    # An empty file has no content to recognise.
    empty_texts: dict[str, Format] = {
        url: "table" for url, size in sizes.items() if not size and _ending(url) in _TEXT_ENDINGS
    }
    return formats | empty_texts


def choose_files(
    formats: Mapping[str, Format], hdf5: Mapping[str, RowCounts], given: str, kind: str
) -> list[Group]:
    """Returns the files of an input that are read, in groups.

    Args:
        formats: Format of each file.
        hdf5: Numbers of rows of each HDF5 file.
        given: The input, for messages.
        kind: Kind of the samples.

    Raises:
        UserError: no file can be read, or they hold addresses instead of images.
    """
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
    texts = (url for url in tables if _ending(url) in endings)
    unknown = [*by_format["unread"], *by_format["unknown"], *texts]
    images = [] if kind == "text" else _together(by_format["image"])
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
        *_each("unknown", [*by_format["unread"], *by_format["unknown"]]),
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
    return [*rows, *_together(images)]


def _each(format: Format, urls: list[str]) -> list[Group]:
    return [(format, (url,)) for url in urls]


def _together(images: list[str]) -> list[Group]:
    return [("image", tuple(images))] if images else []


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
        or (formats[url] in ("unread", "unknown") and os.path.splitext(url)[0] in stems)
    }


def ignored_files(formats: Mapping[str, Format], groups: Sequence[Group], kind: str) -> list[str]:
    """Returns the files that are neither read, nor a text beside an image, nor named by a table."""
    read = {url for _, urls in groups for url in urls}
    if kind != "text" and "image" in formats.values():
        tables = {urls[0] for format, urls in groups if format == "table"}
        read |= {name for url in tables for name in named_files(url)}
    stems = {os.path.splitext(url)[0] for url in read}
    return [
        url
        for url in formats
        if url not in read
        and not (url.endswith(SIDECAR_ENDINGS) and os.path.splitext(url)[0] in stems)
    ]
