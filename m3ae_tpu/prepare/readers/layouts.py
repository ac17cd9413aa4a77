"""Recognition of a table's layout: columns, JSON lines, a JSON document, or plain text.

Formats are recognised by content. Where the content leaves it open, the file's ending decides: the
first line of a book may look like column names or like JSON.
"""

import codecs
import csv
import dataclasses
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from m3ae_tpu.prepare.opening import open_file
from m3ae_tpu.prepare.samples import CAPTION_NAMES, FILE_NAMES, URL_NAMES

_HEAD = 2**16
"""Bytes at the start of a file that decide its layout."""
_NUM_LINES = 20
"""Lines that are looked at."""
SEPARATORS = "\t,;|"
"""Characters between columns."""
_COMPRESSED = ("gz", "bz2", "xz", "lzma", "zst", "zstd")
_JSON, _COLUMNS = ("json", "jsonl", "ndjson"), ("csv", "tsv")


@dataclasses.dataclass(frozen=True)
class Layout:
    """Form of a table."""

    form: Literal["columns", "json", "document", "text"]
    """`json` is an object a line, `document` one JSON value, `text` a text a line."""
    separator: str = ""
    """Character between columns."""
    header: tuple[str, ...] = ()
    """Names of the columns, in lower case."""
    encoding: str = ""
    """Encoding of a file that is read as characters, with line ends of any kind. Empty for UTF-8
    with lines that end in a line feed: these are read as bytes, from any row on.
    """


def find_layout(url: str, kind: str) -> Layout:
    """Returns the layout of a table.

    Args:
        url: The file.
        kind: Kind of the samples. A line of column names is one only if it names what `kind` needs,
            or if the file's ending says CSV or TSV.

    Raises:
        OSError, EOFError, zlib.error, lzma.LZMAError: the file cannot be read.
    """
    with open_file(url) as file:
        head = file.read(_HEAD)
    encoding = _encoding(head)
    lines = _first_lines(head, encoding)
    if not lines:
        return Layout("text", encoding=encoding)
    return dataclasses.replace(_layout(lines, inner_ending(url), kind), encoding=encoding)


def inner_ending(url: str) -> str:
    """Returns the ending of a file's name in lower case, without that of a compression."""
    *stem, ending = url.rpartition("/")[2].lower().split(".")
    if ending in _COMPRESSED and stem:
        *stem, ending = stem
    return ending if stem else ""


def is_preamble(line: str) -> bool:
    """Returns whether a line goes before the names of the columns: blank, or Excel's `sep=;`."""
    text = line.removeprefix("\ufeff").strip()
    return not text or re.fullmatch(r"sep=.", text) is not None


def parse_line(line: str, separator: str) -> list[str]:
    """Returns the fields of one line; nothing for a damaged one."""
    try:
        return next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])
    except csv.Error:
        return []


def _encoding(head: bytes) -> str:
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    # Lines of old Macs end in a carriage return alone.
    return "utf-8" if b"\r" in head.rstrip() and b"\n" not in head else ""


def _first_lines(head: bytes, encoding: str) -> list[str]:
    """Returns the first lines that are not blank, each as far as it lies in the head."""
    text = head.decode(encoding or "utf-8", "replace").removeprefix("\ufeff")
    lines = re.split("\r\n|\r|\n", text) if encoding else text.split("\n")
    if len(head) == _HEAD and len(lines) > 1:
        lines.pop()
    lines = [line.rstrip("\r") for line in lines if line.strip()]
    return lines[lines[:1] != [] and is_preamble(lines[0]) :][:_NUM_LINES]


def _layout(lines: Sequence[str], ending: str, kind: str) -> Layout:
    first = lines[0].strip()
    if first[0] in "{[":
        objects = [row for line in lines if isinstance(row := _json(line), dict)]
        has_known_name = any(_KNOWN.intersection(map(str.lower, row)) for row in objects)
        are_columns = len(lines) == 1 and objects and _are_columns(objects[0])
        if 2 * len(objects) >= len(lines) and (len(lines) > 1 or has_known_name):
            return Layout("document" if are_columns else "json")
        if _is_document(first, ending):
            return Layout("document")
    if ending in _JSON:
        return Layout("json")
    wanted = CAPTION_NAMES if kind == "text" else (*FILE_NAMES, *URL_NAMES)
    headers = {separator: parse_line(first, separator) for separator in SEPARATORS}
    for separator, fields in headers.items():
        names = tuple(name.strip().lower() for name in fields)
        if not set(wanted).isdisjoint(names) and (
            ending in _COLUMNS or _is_header(fields, lines[1:], separator)
        ):
            return Layout("columns", separator, _distinct(names))
    if ending in _COLUMNS:
        separator, fields = max(headers.items(), key=lambda header: len(header[1]))
        return Layout("columns", separator, _distinct([name.strip().lower() for name in fields]))
    return Layout("text")


def _distinct(names: Sequence[str]) -> tuple[str, ...]:
    """Returns names of which a repeated one has its number behind it: the first column counts."""
    return tuple(
        f"{name} {number}" if name in names[:number] else name for number, name in enumerate(names)
    )


_KNOWN = frozenset((*CAPTION_NAMES, *FILE_NAMES, *URL_NAMES))


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _are_columns(row: dict[str, Any]) -> bool:
    """Returns whether an object holds columns, not the values of one row."""
    values = row.values()
    return all(isinstance(value, dict) for value in values) or (
        len(row) > 1 and all(isinstance(value, list) for value in values)
    )


def _is_document(first: str, ending: str) -> bool:
    """Returns whether a first line begins a JSON value, unlike `{{Template}}` or `[1] Author`."""
    second = first[1:].lstrip()[:1]
    if first[0] == "{":
        return second in ('"', "") or ending in _JSON
    return second in ("{", "") or ending in _JSON


def _is_header(fields: Sequence[str], rows: Iterable[str], separator: str) -> bool:
    """Returns whether most of the rows have as many fields as a line of column names.

    A lone word is a column's name only in lower case: a text may begin with the title `Text`.
    """
    if len(fields) == 1:
        return fields[0] == fields[0].lower()
    reader = csv.reader(rows, delimiter=separator, skipinitialspace=True)
    lengths = []
    try:
        lengths += [len(row) for row in itertools.islice(reader, _NUM_LINES)]
    except csv.Error:
        lengths.append(0)
    return 2 * lengths.count(len(fields)) >= len(lengths)
