"""Role of a file in an input: rows, a list of images, an image, texts, or nothing to be read."""

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from m3ae_tpu.prepare.formats import Format
from m3ae_tpu.prepare.named_files import find_named_file
from m3ae_tpu.prepare.opening import UNREADABLE, is_remote
from m3ae_tpu.prepare.readers.hdf5 import OTHER_ARRAYS, hdf5_rows
from m3ae_tpu.prepare.readers.json_documents import NOT_A_LIST
from m3ae_tpu.prepare.readers.layouts import Layout, find_layout, parse_line
from m3ae_tpu.prepare.readers.parquet import parquet_head
from m3ae_tpu.prepare.readers.tables import table_rows
from m3ae_tpu.prepare.samples import (
    CAPTION_NAMES,
    FILE_NAMES,
    IMAGE_NAMES,
    LABEL_NAMES,
    URL_NAMES,
    Fault,
    first_of,
    is_address,
    is_image_name,
)

_NUM_ROWS = 20
"""Rows that are looked at."""
_MOST_NAMES = 1_000
"""Names of a list among which one is searched whose file is there."""
type Use = Literal["rows", "list", "addresses", "image", "text", "damaged", "unknown", "none"]
"""`rows`: the file holds examples; `list`: it names image files; `addresses`: it names web pages;
`text`: a text a line; `damaged`: a file of rows that cannot be opened; `none`: nothing of the kind.
"""
type Rows = Sequence[Mapping[str, Any]]
"""Rows of values by name, in lower case."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Role:
    """Use of a file."""

    use: Use
    reason: str = ""
    """Reason why a file of use `none` is not read."""
    layout: Layout | None = None
    """Layout of a table that is read."""
    is_of_input: bool = False
    """True if a file is there that the list names."""
    row_counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Numbers of rows of an HDF5 file, by prefix of its arrays."""


def find_role(url: str, format: Format, kind: str, root: str) -> Role:
    """Returns the role of a file for samples of a kind.

    Args:
        url: The file.
        format: Format of its content.
        kind: Kind of the samples.
        root: Folder of the input, where files are searched that a list names.
    """
    match format:
        case "tar":
            return Role(use="rows")
        case "image":
            return Role(use="none", reason="image") if kind == "text" else Role(use="image")
        case "hdf5":
            counts = hdf5_rows(url)
            if not isinstance(counts, Fault):
                return Role(use="rows", row_counts=counts)
            is_other = counts.reason == OTHER_ARRAYS
            return Role(use="none" if is_other else "damaged", reason=counts.detail)
        case "parquet":
            return _parquet_role(url, kind, root)
        case "table":
            return _table_role(url, kind, root)
        case _:
            return Role(use="unknown")


def _parquet_role(url: str, kind: str, root: str) -> Role:
    head = parquet_head(url, _NUM_ROWS)
    if head is None:
        return Role(use="damaged")
    names, rows = head
    if kind == "text":
        has_texts = not names.isdisjoint(CAPTION_NAMES)
        return Role(use="rows") if has_texts else _without(CAPTION_NAMES, names)
    images = [first_of(row, (*IMAGE_NAMES, *FILE_NAMES)) for row in rows]
    are_empty = not rows and not names.isdisjoint(IMAGE_NAMES)
    if are_empty or any(map(_is_encoded, images)):
        return Role(use="rows")
    _, rows = parquet_head(url, _MOST_NAMES) or head
    return _list_role(rows, names, url, kind, root)


def _is_encoded(image: Any) -> bool:
    return isinstance(image.get("bytes") if isinstance(image, Mapping) else image, bytes)


def _table_role(url: str, kind: str, root: str) -> Role:
    try:
        layout = find_layout(url, kind)
    except UNREADABLE:
        return Role(use="unknown")
    if layout.form == "text":
        if kind == "text":
            return Role(use="text", layout=layout)
        return Role(use="none", reason=_reason_of_text(url, layout))
    rows = _first_rows(url, layout)
    found = [row for row in rows if not isinstance(row, Fault)]
    faults = [row for row in rows if isinstance(row, Fault)]
    if faults and not found and (kind != "text" or faults[0] == NOT_A_LIST):
        return Role(use="none", reason=str(faults[0]))
    names = {*layout.header}.union(*found[:_NUM_ROWS])
    if kind == "text":
        has_texts = not found or not names.isdisjoint(CAPTION_NAMES)
        role = Role(use="rows") if has_texts else _without(CAPTION_NAMES, names)
    else:
        role = _list_role(found, names, url, kind, root)
    return dataclasses.replace(role, layout=layout)


def _first_rows(url: str, layout: Layout) -> list[Mapping[str, Any] | Fault]:
    rows = []
    with contextlib.suppress(*UNREADABLE):
        rows += (row for row in itertools.islice(table_rows(url, layout), _MOST_NAMES) if row)
    return rows


def _list_role(rows: Rows, names: Iterable[str], url: str, kind: str, root: str) -> Role:
    """Returns the role of rows without encoded images."""
    found = [file_name(row) for row in rows]
    files = [name for name in found if name.strip() and not is_address(name)]
    folder = os.path.dirname(url)
    is_of_input = any(_is_there(name, folder, root) for name in files)
    has_addresses = any(map(is_address, found)) or any(
        is_address(first_of(row, URL_NAMES)) for row in rows
    )
    if has_addresses and not is_of_input:
        return Role(use="addresses", reason="holds addresses of images, not images")
    if not files:
        return _without(FILE_NAMES, names)
    if kind == "paired" and set(names).isdisjoint(CAPTION_NAMES):
        return _without(CAPTION_NAMES, names)
    if kind == "labelled" and _lacks_labels(files, names, folder, root):
        return _without(LABEL_NAMES, names)
    reason = "" if is_of_input else f"no file that it names is there: {files[0]!r}"
    return Role(use="list", is_of_input=is_of_input, reason=reason)


def _lacks_labels(files: Iterable[str], names: Iterable[str], folder: str, root: str) -> bool:
    """Returns whether a list has its classes in a column of an unknown name.

    So it is if all of its images lie in one folder, and there is a column that has no other use.
    """
    known = {*FILE_NAMES, *CAPTION_NAMES, *URL_NAMES, ""}
    if not set(names).isdisjoint(LABEL_NAMES):
        return False
    folders = set()
    for name in files:
        with contextlib.suppress(OSError, ValueError):
            folders.add(os.path.dirname(find_named_file(name, folder, root)))
    return len(folders) <= 1 and not known.issuperset(names)


def file_name(row: Mapping[str, Any]) -> str:
    """Returns the name of an image file or its address in a row; empty without one."""
    value = first_of(row, FILE_NAMES)
    value = value.get("path") if isinstance(value, Mapping) else value
    return value if isinstance(value, str) else ""


def _is_there(name: str, folder: str, root: str) -> bool:
    try:
        find_named_file(name, folder, root)
    except (OSError, ValueError):  # ValueError: a zero byte in the name.
        return False
    return not is_remote(folder)


def _without(wanted: Sequence[str], names: Iterable[str]) -> Role:
    """Returns the role of a table that lacks a column."""
    if any(is_address(name) or is_image_name(name) for name in names):
        return Role(use="none", reason=_WITHOUT_NAMES)
    columns = ", ".join(sorted(names)[:8])
    return Role(
        use="none",
        reason=f"no column is named {', '.join(wanted[:4])} or the like, but {columns or 'none'}",
    )


_WITHOUT_NAMES = "a list without column names: add a first line, such as file,caption"


def _reason_of_text(url: str, layout: Layout) -> str:
    """Returns why a plain text is not a list of images."""
    rows = (row for row in _first_rows(url, layout)[:_NUM_ROWS] if isinstance(row, Mapping))
    lines = [str(row["text"], "utf-8", "replace") for row in rows]
    for separator in "\t,;|":
        fields = [parse_line(line, separator) for line in lines]
        named = [row for row in fields if len(row) > 1 and is_image_name(row[0])]
        if named and 2 * len(named) >= len(lines):
            return _WITHOUT_NAMES
    return "text that names no images"
