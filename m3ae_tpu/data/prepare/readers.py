"""One reader for each form of collection: yields samples, names what cannot be read, never stops early in silence."""

import csv
import importlib
import io
import itertools
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from m3ae_tpu.config import ConfigError, require
from m3ae_tpu.data.prepare.samples import Sample, open_file

IMAGE_NAMES = ("image", "jpg", "jpeg", "png", "webp", "img", "image_bytes")
"""Columns and file endings that hold an encoded image, the first one found counts."""
CAPTION_NAMES = ("captions", "caption", "text", "txt")
"""The same for texts; a list holds several wordings."""
LABEL_NAMES = ("label_name", "label", "class", "cls")
FILE_NAMES = ("file", "file_name", "filename", "image", "path", "image_path")
"""Columns of a table that name an image file beside it."""
URL_NAMES = ("url", "image_url", "URL")

_ROWS_AT_A_TIME = 32
csv.field_size_limit(2**24)


def first_of(row: Mapping[str, Any], names: Iterable[str]) -> Any:
    """Returns the value of the first name that the row has and that is not None."""
    return next((row[name] for name in names if row.get(name) is not None), None)


def as_captions(value: Any) -> tuple[str | bytes, ...]:
    """Returns one text or a list of them as a tuple; nothing as an empty one."""
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list | tuple) else (value,)


def read_tar(url: str) -> Iterator[Sample]:
    """Yields the samples of a webdataset tar: neighbours whose names are equal up to the first dot.

    Goes on behind a damaged header; what it cost shows as a sample without image or caption. An archive that
    is cut short ends in a sample that says so. Members outside of the archive's folder are refused.
    """
    with open_file(url) as file:
        for key, group in itertools.groupby(_tar_members(file), key=lambda member: _stem(member[0])):
            place, members = f"{url}, {key}", list(group)
            if members[-1][1] is None:
                # The sample that it was about to give is incomplete.
                yield Sample(place=place, fault="archive cut short")
                continue
            if key.startswith("/") or ".." in key.split("/"):
                yield Sample(place=place, fault="unsafe path")
                continue
            parts = {
                name[len(key) + 1 :].lower(): content for name, content in members if content is not None
            }
            yield _tar_sample(place, parts)


def _tar_sample(place: str, parts: Mapping[str, bytes]) -> Sample:
    try:
        extra = json.loads(parts.get("json", b"{}"))
    except ValueError:
        extra = {}  # Captions beside it may do without.
    extra = extra if isinstance(extra, dict) else {}
    captions = first_of(parts, CAPTION_NAMES)
    label = first_of(parts, LABEL_NAMES)
    known = {*CAPTION_NAMES, *LABEL_NAMES, "json"}
    return Sample(
        place=place,
        image=next((content for ending, content in parts.items() if ending not in known), None),
        captions=as_captions(first_of(extra, CAPTION_NAMES) if captions is None else captions),
        label=label.decode("utf-8", "replace").strip() if label else str(first_of(extra, LABEL_NAMES) or ""),
    )


def _tar_members(file: Any) -> Iterator[tuple[str, bytes | None]]:
    """Yields name and content of the regular, visible files; None as content where the archive breaks off."""
    name = "(start)"
    with tarfile.open(fileobj=file, mode="r|", ignore_zeros=True) as archive:
        try:
            while (member := archive.next()) is not None:
                name = member.name
                stream = archive.extractfile(member) if member.isfile() else None
                if stream is not None and not os.path.basename(name).startswith("."):
                    yield name, stream.read()
        except (tarfile.TarError, EOFError, OSError):
            yield name, None


def _stem(name: str) -> str:
    """Returns a member's name up to the first dot of its last part."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def read_parquet(url: str) -> Iterator[Sample]:
    """Yields the rows of a parquet file: image bytes, or Hugging Face's struct of bytes and path.

    Raises:
        ConfigError: the file has neither an image nor a text column, or addresses instead of images.
    """
    pyarrow, _ = _module("pyarrow", url), _module("pyarrow.parquet", url)
    with open_file(url) as file:
        try:
            table = pyarrow.parquet.ParquetFile(file, pre_buffer=False)
        except (pyarrow.ArrowInvalid, OSError) as error:
            yield Sample(place=url, fault=f"unreadable file: {_line(error)}")
            return
        names = table.schema_arrow.names
        wanted = [name for name in names if name in {*IMAGE_NAMES, *CAPTION_NAMES, *LABEL_NAMES}]
        has_image = any(name in IMAGE_NAMES for name in wanted)
        require(
            has_image or not any(name in URL_NAMES for name in names),
            f"--input = {url} holds addresses of images, not images. Download them first: "
            "img2dataset --url_list=FILE --input_format=parquet --output_format=webdataset.",
        )
        require(
            bool(wanted),
            f"--input = {url} has the columns {', '.join(names[:8])}; none is an image ({', '.join(IMAGE_NAMES)}) "
            f"or a text ({', '.join(CAPTION_NAMES)}). Rename one.",
        )
        number, total = 0, table.metadata.num_rows
        try:
            for batch in table.iter_batches(_ROWS_AT_A_TIME, columns=wanted):
                for row in batch.to_pylist():
                    yield _parquet_sample(row, url, number)
                    number += 1
        except (pyarrow.ArrowException, OSError) as error:
            for lost in range(number, total):
                yield Sample(place=f"{url}, row {lost}", fault=f"unreadable row: {_line(error)}")


def _parquet_sample(row: Mapping[str, Any], url: str, number: int) -> Sample:
    image, place = first_of(row, IMAGE_NAMES), f"{url}, row {number}"
    if isinstance(image, Mapping):
        path = image.get("path")
        if image.get("bytes") is None and path:
            return _with_file(place, os.path.join(os.path.dirname(url), path), row)
        image = image.get("bytes")
    return Sample(
        place=place,
        image=image if isinstance(image, bytes) else None,
        captions=as_captions(first_of(row, CAPTION_NAMES)),
        label=str(first_of(row, LABEL_NAMES) or ""),
    )


def read_hdf5(url: str) -> Iterator[Sample]:
    """Yields the rows of the paper's HDF5 files: `jpg` with `caption` or `text`, also as `train_jpg`, `val_jpg`.

    Raises:
        ConfigError: no such array is in the file.
    """
    h5py = _module("h5py", url)
    with open_file(url) as file:
        try:
            stored: Any = h5py.File(file, "r")
        except OSError as error:
            yield Sample(place=url, fault=f"unreadable file: {_line(error)}")
            return
        with stored:
            names = [name for name in stored if isinstance(stored[name], h5py.Dataset)]
            prefixes = sorted(
                {
                    name.removesuffix(ending)
                    for name in names
                    for ending in ("jpg", "caption", "text")
                    if name.endswith(ending)
                }
            )
            require(
                bool(prefixes),
                f"--input = {url} holds {', '.join(names[:8]) or 'no arrays'}; expected jpg, caption or text.",
            )
            for prefix in prefixes:
                arrays = {
                    name: stored[prefix + name]
                    for name in ("jpg", "caption", "text", "labels")
                    if prefix + name in names
                }
                for number in range(max(len(array) for array in arrays.values())):
                    yield _hdf5_sample(arrays, f"{url}, {prefix}row {number}", number)


def _hdf5_sample(arrays: Mapping[str, Any], place: str, number: int) -> Sample:
    try:
        row = {name: array[number] for name, array in arrays.items() if number < len(array)}
    except (OSError, RuntimeError) as error:
        return Sample(place=place, fault=f"unreadable row: {_line(error)}")
    caption = first_of(row, CAPTION_NAMES)
    image = row.get("jpg")
    return Sample(
        place=place,
        image=None if image is None else bytes(image),
        captions=() if caption is None else (caption if isinstance(caption, str) else bytes(caption),),
        label=str(row["labels"]) if "labels" in row else "",
    )


def read_table(url: str) -> Iterator[Sample]:
    """Yields the rows of JSON lines, CSV or TSV, or the lines of a plain text, whichever the content is.

    A column that names a file gives the image beside the table, or in a folder below it.
    """
    with open_file(url) as file:
        lines = io.TextIOWrapper(file, encoding="utf-8-sig", errors="surrogateescape", newline="")
        start = lines.readline()
        rest = itertools.chain([start], lines)
        if start.lstrip().startswith("{"):
            yield from _json_samples(url, rest)
            return
        separator = "\t" if "\t" in start else ","
        header = [name.strip() for name in next(csv.reader([start], delimiter=separator), [])]
        known = {*FILE_NAMES, *CAPTION_NAMES, *LABEL_NAMES, *URL_NAMES}
        if known.intersection(header):
            _refuse_addresses(url, header)
            for number, row in enumerate(csv.DictReader(rest, delimiter=separator)):
                named = {(name or "").strip(): value for name, value in row.items()}
                yield _row_sample(named, url, number)
            return
        for number, line in enumerate(rest):
            if line.strip():
                yield Sample(place=f"{url}, line {number + 1}", captions=(_raw(line),))


def _json_samples(url: str, lines: Iterable[str]) -> Iterator[Sample]:
    for number, line in enumerate(lines):
        if not line.strip():
            continue
        place = f"{url}, line {number + 1}"
        try:
            row = json.loads(line)
        except ValueError as error:
            yield Sample(place=place, fault=f"no JSON: {_line(error)}")
            continue
        if not isinstance(row, dict):
            yield Sample(place=place, fault="no JSON object")
            continue
        if number == 0:
            _refuse_addresses(url, row)
        yield _row_sample(row, url, number)


def _refuse_addresses(url: str, names: Iterable[str]) -> None:
    names = set(names)
    require(
        not names.intersection(URL_NAMES) or bool(names.intersection(FILE_NAMES)),
        f"--input = {url} holds addresses of images, not images. Download them first: "
        "img2dataset --url_list=FILE --output_format=webdataset.",
    )


def _row_sample(row: Mapping[str, Any], url: str, number: int) -> Sample:
    place, name = f"{url}, row {number}", first_of(row, FILE_NAMES)
    if isinstance(name, str) and name:
        return _with_file(place, os.path.join(os.path.dirname(url), name), row)
    return _without_file(place, row)


def _with_file(place: str, path: str, row: Mapping[str, Any]) -> Sample:
    try:
        with open_file(path) as file:
            image = file.read()
    except (OSError, EOFError) as error:
        return Sample(place=place, fault=f"unreadable image file: {_line(error)}")
    return Sample(
        place=place,
        image=image,
        captions=tuple(map(_raw, as_captions(first_of(row, CAPTION_NAMES)))),
        label=str(first_of(row, LABEL_NAMES) or ""),
    )


def _without_file(place: str, row: Mapping[str, Any]) -> Sample:
    captions = tuple(map(_raw, as_captions(first_of(row, CAPTION_NAMES))))
    return Sample(place=place, captions=captions, label=str(first_of(row, LABEL_NAMES) or ""))


def _raw(text: Any) -> bytes:
    """Returns the bytes that a table held for a text, damaged ones too."""
    return str(text).encode("utf-8", "surrogateescape")


def read_image_files(urls: Iterable[str]) -> Iterator[Sample]:
    """Yields image files: the caption from a `.txt` of the same name, the label from the folder's name."""
    for url in urls:
        beside = os.path.splitext(url)[0] + ".txt"
        try:
            with open_file(url) as file:
                image = file.read()
        except (OSError, EOFError) as error:
            yield Sample(place=url, fault=f"unreadable image file: {_line(error)}")
            continue
        captions: tuple[bytes, ...] = ()
        if beside != url:
            try:
                with open_file(beside) as file:
                    captions = (file.read(),)
            except FileNotFoundError:
                pass  # An image alone: whether that is enough is for the kind to say.
        yield Sample(place=url, image=image, captions=captions, label=os.path.basename(os.path.dirname(url)))


def _module(name: str, url: str) -> Any:
    """Imports what one format alone needs.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ConfigError(
            f"--input = {url} needs {name}, which is not installed: pip install 'm3ae-tpu[prepare]'."
        ) from None


def _line(error: BaseException) -> str:
    return (str(error).partition("\n")[0] or type(error).__name__)[:100]
