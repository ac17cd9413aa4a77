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

from m3ae_tpu.prepare.opening import UNREADABLE, is_compressed, is_remote, open_file, read_whole
from m3ae_tpu.prepare.samples import (
    CAPTION_NAMES,
    FILE_NAMES,
    LABEL_NAMES,
    URL_NAMES,
    Fault,
    Sample,
    first_line,
    first_of,
    is_address,
    row_sample,
)

SIDECAR_ENDINGS = (".txt", ".TXT")
"""Endings of the text beside an image."""
_LONGEST_LINE = 2**24
"""Bytes of a row that are kept. A longer row is damaged, or the file is not a table."""
csv.field_size_limit(_LONGEST_LINE)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Form of a table's lines."""

    form: Literal["columns", "json", "text", "array"]
    separator: str = ","
    header: tuple[str, ...] = ()


def table_layout(line: bytes) -> Layout:
    """Returns the layout of a table, as its first line that is not blank shows it."""
    text = _text(line).strip()
    if text.startswith("{"):
        return Layout("json")
    if text.startswith("[") and text[1:].lstrip()[:1] in ("", "{"):
        return Layout("array")
    column_names = {*FILE_NAMES, *CAPTION_NAMES, *LABEL_NAMES, *URL_NAMES}
    for separator in "\t,;":
        try:
            header = next(csv.reader([text], delimiter=separator), [])
        except csv.Error:  # Damage put a carriage return into the line.
            continue
        names = tuple(name.strip().lower() for name in header)
        if column_names.intersection(names):
            return Layout("columns", separator, names)
    return Layout("text")


def read_table(
    url: str, start: int = 0, stop: int | None = None, first_row: int = 0
) -> Iterator[Sample]:
    """Yields the rows of JSON lines, CSV or TSV, or the lines of a plain text.

    Names of images are relative to the table's folder.

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
            if isinstance(row, Fault):
                yield Sample(place=place, fault=row)
            elif row is not None:
                yield row_sample(row, place, url, FILE_NAMES)
    except UNREADABLE as error:
        yield Sample(
            place=f"{url}, behind row {number + 1}",
            fault=Fault("unreadable file", first_line(error)),
        )


def table_spans(url: str, rows: int) -> list[tuple[int, int | None, int]]:
    """Returns `start`, `stop` and `first_row` of `read_table` for pieces of `rows` rows.

    The last piece may be shorter or longer, and has no `stop`.
    """
    spans, start, first = [], 0, 0
    try:
        for number, (offset, _) in enumerate(_rows(url, 0, None), 1):
            if offset is None:  # Compressed: reading cannot start at a row.
                break
            if number % rows == 0:
                spans.append((start, offset, first))
                start, first = offset, number
    except UNREADABLE:
        pass  # The reader of the last piece gives the reason.
    return [*spans, (start, None, first)]


def _rows(
    url: str, start: int, stop: int | None
) -> Iterator[tuple[int | None, Mapping[str, Any] | Fault | None]]:
    """Yields, for each row, the byte behind it and its fields.

    The byte is None in a compressed file. Instead of its fields, an unreadable row has its fault,
    and an empty row None.
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
        has_offsets = not is_compressed(file)
        readers = {"columns": _columns, "json": _objects, "text": _texts, "array": _array}
        for row in readers[layout.form](lines, layout):
            offset = file.tell() if has_offsets else None
            yield offset, row
            if stop is not None and offset is not None and offset >= stop:
                return


def _lines(file: Any) -> Iterator[bytes]:
    """Yields lines, of each at most the first `_LONGEST_LINE` bytes."""
    while line := file.readline(_LONGEST_LINE):
        yield line
        while len(line) == _LONGEST_LINE and not line.endswith(b"\n"):
            line = file.readline(_LONGEST_LINE)


def _columns(lines: Iterable[bytes], layout: Layout) -> Iterator[Mapping[str, Any] | Fault | None]:
    # In tab-separated lists, such as CC12M's, quotes are part of the caption.
    quoting = csv.QUOTE_NONE if layout.separator == "\t" else csv.QUOTE_MINIMAL
    rows = csv.reader(map(_text, lines), delimiter=layout.separator, quoting=quoting, strict=True)
    while True:
        line = rows.line_num
        try:
            row = next(rows, None)
        except csv.Error as error:
            # An open quote swallows the rows behind it. Each of them is counted as lost.
            for _ in range(rows.line_num - line):
                yield Fault("unreadable row", first_line(error))
            continue
        if row is None:
            return
        if not any(row):
            yield None
        elif len(row) > len(layout.header):
            yield Fault("row with more fields than the header")
        else:
            yield dict(
                zip(
                    layout.header,
                    map(_unquoted, row) if quoting == csv.QUOTE_NONE else row,
                    strict=False,
                )
            )


def _unquoted(field: str) -> str:
    """Returns a field without quotes around all of it. `"Merry" and "Happy"` has none of these."""
    inner = field[1:-1].replace('""', "")
    is_quoted = len(field) > 1 and field[0] == field[-1] == '"' and '"' not in inner
    return field[1:-1].replace('""', '"') if is_quoted else field


def _objects(lines: Iterable[bytes], layout: Layout) -> Iterator[Mapping[str, Any] | Fault | None]:
    for line in lines:
        try:
            row = json.loads(_text(line)) if line.strip() else None
        except (ValueError, RecursionError) as error:
            yield Fault("not JSON", first_line(error))
            continue
        if row is None or isinstance(row, dict):
            yield row and {name.lower(): value for name, value in row.items()}
        else:
            yield Fault("not a JSON object")


def _texts(lines: Iterable[bytes], layout: Layout) -> Iterator[Mapping[str, Any] | None]:
    return ({"text": line} if line.strip() else None for line in lines)


def _array(lines: Iterable[bytes], layout: Layout) -> Iterator[Fault]:
    yield Fault("one JSON array, not JSON lines")


def _text(line: bytes) -> str:
    # Bytes that are not UTF-8 stay as they are: cleaning finds them, and drops this row only.
    return line.decode("utf-8", "surrogateescape")


def table_holds(url: str, kind: str) -> Literal["images", "addresses", "texts"]:
    """Returns what the first rows of a table name: image files, web addresses, or texts only.

    With kind `paired`, images count only if there is a caption among the rows.
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
    """Yields the paths of the files that a table names, as far as it can be read."""
    with contextlib.suppress(*UNREADABLE):
        for _, row in _rows(url, 0, None):
            name = first_of(row, FILE_NAMES) if isinstance(row, Mapping) else None
            if isinstance(name, str) and name and not is_address(name):
                path = os.path.join(os.path.dirname(url), name)
                yield path if is_remote(path) else os.path.normpath(path)


def read_image_files(urls: Iterable[str]) -> Iterator[Sample]:
    """Yields image files, each with the `.txt` of the same name and its folder's name as label."""
    for url in urls:
        try:
            image, captions = read_whole(url), _text_beside(url)
        except UNREADABLE as error:
            yield Sample(place=url, fault=Fault("unreadable image file", first_line(error)))
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
    return ()  # Cleaning decides whether an image alone is enough.
