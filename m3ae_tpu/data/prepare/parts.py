"""The parts of a collection: pieces small enough to redo, each with the reader that fits its content."""

import dataclasses
import json
from collections.abc import Iterator

import fsspec

from m3ae_tpu.config import ConfigError, require
from m3ae_tpu.data.prepare.readers import read_hdf5, read_image_files, read_parquet, read_table, read_tar
from m3ae_tpu.data.prepare.samples import Format, Sample, file_format

IMAGES_IN_A_PART = 1_000


@dataclasses.dataclass(frozen=True)
class Part:
    """Files that are read one after the other."""

    format: Format
    urls: tuple[str, ...]
    sizes: tuple[int, ...]
    """Bytes of each file: a changed one makes another part."""

    def samples(self) -> Iterator[Sample]:
        """Yields what the files hold, in order."""
        if self.format == "image":
            yield from read_image_files(self.urls)
            return
        read = {"tar": read_tar, "parquet": read_parquet, "hdf5": read_hdf5, "table": read_table}[self.format]
        for url in self.urls:
            yield from read(url)

    def key(self) -> str:
        """Returns a text that tells this part from others, and from itself with other files."""
        return json.dumps([self.format, self.urls, self.sizes])


def find_parts(inputs: list[str], kind: str) -> list[Part]:
    """Lists the parts of files and folders, also remote ones; formats are told by content.

    A folder with tars, parquet or HDF5 files is read as those, and what lies beside them (img2dataset's lists
    and statistics) is left alone. Of a folder of images, tables that name the images are read if there are any; with
    none, every file but texts counts as an image.

    Raises:
        ConfigError: an input does not exist or holds nothing to read.
    """
    parts: list[Part] = []
    seen: set[str] = set()
    for given in inputs:
        found = _files(given)
        require(bool(found), f"--input = {given} does not exist or is an empty folder. Check the path.")
        twice = seen.intersection(found)
        require(
            not twice, f"--input = {given} names {min(twice, default='')} a second time. Name each file once."
        )
        seen.update(found)
        by_format: dict[Format | None, list[str]] = {}
        for url in found:
            by_format.setdefault(file_format(url), []).append(url)
        parts += [
            Part(format, urls, tuple(found[url] for url in urls))
            for format, urls in _groups(by_format, given, kind)
        ]
    return parts


def _groups(
    by_format: dict[Format | None, list[str]], given: str, kind: str
) -> list[tuple[Format, tuple[str, ...]]]:
    """Returns the files of each part, and how they are read."""
    for format in ("tar", "parquet", "hdf5"):
        if by_format.get(format):
            return [(format, (url,)) for url in by_format[format]]
    tables = by_format.get("table", [])
    if kind == "text":
        require(
            bool(tables),
            f"--input = {given} holds no text to read. Give plain text, JSON lines, CSV or parquet.",
        )
        return [("table", (url,)) for url in tables]
    lists = [url for url in tables if _names_images(url)]
    if lists:
        return [("table", (url,)) for url in lists]
    # What is no text is taken for an image, a damaged one too: it is dropped with its reason, not passed over.
    texts = {url for url in tables if url.rsplit(".", 1)[-1].lower() in ("txt", "json", "csv", "tsv", "md")}
    images = sorted(url for urls in by_format.values() for url in urls if url not in texts)
    require(
        bool(images), f"--input = {given} holds no images. Give a folder of images, tars, parquet or HDF5."
    )
    return [
        ("image", tuple(images[start : start + IMAGES_IN_A_PART]))
        for start in range(0, len(images), IMAGES_IN_A_PART)
    ]


def _names_images(url: str) -> bool:
    """Returns whether a table's first row leads to an image file."""
    first = next(read_table(url), None)
    return first is not None and (first.image is not None or first.fault.startswith("unreadable image file"))


def _files(given: str) -> dict[str, int]:
    """Returns all files of a folder and those below it, or the file, sorted, with sizes; hidden ones are left out."""
    try:
        system, root = fsspec.core.url_to_fs(given)
    except ImportError as error:
        raise ConfigError(f"--input = {given} needs another package: {error}.") from error
    except ValueError as error:
        raise ConfigError(f"--input = {given} cannot be opened: {error}.") from error
    found = system.find(root, detail=True)
    return {
        str(system.unstrip_protocol(name)): int(found[name].get("size") or 0)
        for name in sorted(found)
        if not any(part.startswith(".") for part in name[len(root) :].split("/"))
    }
