"""Loose files: images with texts beside them; lists in CSV, TSV or JSON lines; plain text."""

import codecs
import contextlib
import csv
import dataclasses
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from m3ae_tpu.prepare.samples import (
    CAPTION_NAMES,
    FILE_NAMES,
    LABEL_NAMES,
    UNREADABLE,
    URL_NAMES,
    Sample,
    as_captions,
    as_label,
    first_line,
    first_of,
    is_address,
    is_compressed,
    is_remote,
    open_file,
    read_whole,
)

SIDECAR_ENDINGS = (".txt", ".TXT")
"""Of the text beside an image."""
_LONGEST_LINE = 2**24
csv.field_size_limit(_LONGEST_LINE)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the lines of a table are read."""

    form: Literal["columns", "json", "text", "array"]
    separator: str = ","
    header: tuple[str, ...] = ()


def table_layout(line: bytes) -> Layout:
    """Returns what the first line of a table that is not blank says of the others."""
    text = _text(line).strip()
    if text.startswith("{"):
        return Layout("json")
    if text.startswith("[") and text[1:].lstrip()[:1] in ("", "{"):
        return Layout("array")
    known = {*FILE_NAMES, *CAPTION_NAMES, *LABEL_NAMES, *URL_NAMES}
    for separator in "\t,;":
        try:
            header = next(csv.reader([text], delimiter=separator), [])
        except csv.Error:  # A carriage return within the line, as damage makes it.
            continue
        names = tuple(name.strip().lower() for name in header)
        if known.intersection(names):
            return Layout("columns", separator, names)
    return Layout("text")


def read_table(
    url: str, start: int = 0, stop: int | None = None, first_row: int = 0
) -> Iterator[Sample]:
    """Yields the rows of JSON lines, CSV or TSV, or the lines of a plain text, whichever the
    content is.

    A column that names a file gives the image beside the table, or in a folder below it.

    Args:
        url: The file.
        start: Byte at which a row begins; 0 is the start of the file.
        stop: Byte at which a later row begins; None reads to the end.
        first_row: Number of the first row, for messages.
    """
    number = first_row
    try:
        for number, (_, row) in enumerate(_rows(url, start, stop), first_row):
            place = f"{url}, row {number + 1}"
            if isinstance(row, str):
                yield Sample(place=place, fault=row)
            elif row is not None:
                yield _row_sample(row, url, place)
    except UNREADABLE as error:
        yield Sample(
            place=f"{url}, behind row {number + 1}", fault=f"unreadable file: {first_line(error)}"
        )


def table_spans(url: str, rows: int) -> list[tuple[int, int | None, int]]:
    """Returns start, stop and first row (as `read_table` takes them) of pieces of so many rows; the
    last is open.
    """
    spans, start, first = [], 0, 0
    try:
        for number, (position, _) in enumerate(_rows(url, 0, None), 1):
            if position is None:  # Compressed: no row can be jumped to.
                break
            if number % rows == 0:
                spans.append((start, position, first))
                start, first = position, number
    except UNREADABLE:
        pass  # Whoever reads the last piece will say why.
    return [*spans, (start, None, first)]


def _rows(
    url: str, start: int, stop: int | None
) -> Iterator[tuple[int | None, Mapping[str, Any] | str | None]]:
    """Yields, for each row, the byte behind it and its fields; a text says what is wrong with it,
    None is empty.
    """
    with open_file(url) as file:
        head = [file.readline(_LONGEST_LINE).removeprefix(codecs.BOM_UTF8)]
        while head[-1] and not head[-1].strip():
            head.append(file.readline(_LONGEST_LINE))
        layout = table_layout(head[-1])
        lines = _lines(file)
        if start:
            file.seek(start)
        elif layout.form != "columns":
            lines = itertools.chain(head, lines)
        tells = not is_compressed(file)
        readers = {"columns": _columns, "json": _objects, "text": _texts, "array": _array}
        for row in readers[layout.form](lines, layout):
            position = file.tell() if tells else None
            yield position, row
            if stop is not None and position is not None and position >= stop:
                return


def _lines(file: Any) -> Iterator[bytes]:
    """Yields lines; of one that is longer than any text its start."""
    while line := file.readline(_LONGEST_LINE):
        yield line
        while len(line) == _LONGEST_LINE and not line.endswith(b"\n"):
            line = file.readline(_LONGEST_LINE)


def _columns(lines: Iterable[bytes], layout: Layout) -> Iterator[Mapping[str, Any] | str | None]:
    # In tab-separated lists, as CC12M's, quotes are part of the caption.
    quoting = csv.QUOTE_NONE if layout.separator == "\t" else csv.QUOTE_MINIMAL
    rows = csv.reader(map(_text, lines), delimiter=layout.separator, quoting=quoting, strict=True)
    while True:
        line = rows.line_num
        try:
            row = next(rows, None)
        except csv.Error as error:
            # A quote that is not closed takes in the rows behind it: they are lost, but not
            # uncounted.
            for _ in range(rows.line_num - line):
                yield f"unreadable row: {first_line(error)}"
            continue
        if row is None:
            return
        if not any(row):
            yield None
        elif len(row) > len(layout.header):
            yield "row with more fields than the header"
        else:
            yield dict(
                zip(
                    layout.header,
                    map(_unquoted, row) if quoting == csv.QUOTE_NONE else row,
                    strict=False,
                )
            )


def _unquoted(field: str) -> str:
    """Returns a field without the quotes around it; those of `"Merry" and "Happy"` are not around
    it.
    """
    inner = field[1:-1].replace('""', "")
    is_quoted = len(field) > 1 and field[0] == field[-1] == '"' and '"' not in inner
    return field[1:-1].replace('""', '"') if is_quoted else field


def _objects(lines: Iterable[bytes], layout: Layout) -> Iterator[Mapping[str, Any] | str | None]:
    for line in lines:
        try:
            row = json.loads(_text(line)) if line.strip() else None
        except (ValueError, RecursionError) as error:
            yield f"no JSON: {first_line(error)}"
            continue
        if row is None or isinstance(row, dict):
            yield row and {name.lower(): value for name, value in row.items()}
        else:
            yield "no JSON object"


def _texts(lines: Iterable[bytes], layout: Layout) -> Iterator[Mapping[str, Any] | None]:
    return ({"text": line} if line.strip() else None for line in lines)


def _array(lines: Iterable[bytes], layout: Layout) -> Iterator[str]:
    yield "one JSON array, not JSON lines"


def _text(line: bytes) -> str:
    # What is not UTF-8 is found when its caption is cleaned, and costs its own row only.
    return line.decode("utf-8", "surrogateescape")


def _row_sample(row: Mapping[str, Any], url: str, place: str) -> Sample:
    name, image = first_of(row, FILE_NAMES), None
    if is_address(name):
        return Sample(place=place, fault="address instead of an image file")
    if isinstance(name, str) and name:
        try:
            image = read_whole(os.path.join(os.path.dirname(url), name))
        except UNREADABLE as error:
            return Sample(place=place, fault=f"unreadable image file: {first_line(error)}")
    return Sample(
        place=place,
        image=image,
        captions=as_captions(first_of(row, CAPTION_NAMES)),
        label=as_label(first_of(row, LABEL_NAMES)),
    )


def table_holds(url: str, kind: str) -> Literal["images", "addresses", "texts"]:
    """Returns what the first rows of a table lead to; of pairs, images need a caption beside their
    name.
    """
    try:
        found = (row for _, row in _rows(url, 0, None) if isinstance(row, Mapping))
        rows = list(itertools.islice(found, 8))
    except UNREADABLE:
        rows = []
    names = [first_of(row, FILE_NAMES) for row in rows]
    has_all = kind != "paired" or any(first_of(row, CAPTION_NAMES) is not None for row in rows)
    if has_all and any(isinstance(name, str) and name and not is_address(name) for name in names):
        return "images"
    is_list = any(map(is_address, names)) or any(
        first_of(row, URL_NAMES) is not None for row in rows
    )
    return "addresses" if is_list else "texts"


def named_files(url: str) -> Iterator[str]:
    """Yields the addresses of the files that a table names, as far as it can be read."""
    with contextlib.suppress(*UNREADABLE):
        for _, row in _rows(url, 0, None):
            name = first_of(row, FILE_NAMES) if isinstance(row, Mapping) else None
            if isinstance(name, str) and name and not is_address(name):
                path = os.path.join(os.path.dirname(url), name)
                yield path if is_remote(path) else os.path.normpath(path)


def read_image_files(urls: Iterable[str]) -> Iterator[Sample]:
    """Yields image files: the caption from a `.txt` of the same name, the label from the folder's
    name.
    """
    for url in urls:
        try:
            image, captions = read_whole(url), _text_beside(url)
        except UNREADABLE as error:
            yield Sample(place=url, fault=f"unreadable image file: {first_line(error)}")
            continue
        yield Sample(
            place=url, image=image, captions=captions, label=os.path.basename(os.path.dirname(url))
        )


def _text_beside(url: str) -> tuple[bytes, ...]:
    for ending in SIDECAR_ENDINGS:
        beside = f"{os.path.splitext(url)[0]}{ending}"
        if beside == url:
            return ()
        with contextlib.suppress(FileNotFoundError):
            return (read_whole(beside),)
    return ()  # An image alone: whether that is enough is for the kind to say.
