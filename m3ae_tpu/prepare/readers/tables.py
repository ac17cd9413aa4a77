"""Tables: CSV, TSV, JSON lines, JSON documents and plain text, read from any row on."""

import codecs
import collections
import contextlib
import csv
import io
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from m3ae_tpu.prepare.opening import UNREADABLE, is_compressed, open_file
from m3ae_tpu.prepare.readers.json_documents import read_document
from m3ae_tpu.prepare.readers.layouts import SEPARATORS, Layout, is_preamble
from m3ae_tpu.prepare.samples import FILE_NAMES, Fault, Sample, first_line, row_sample

_LONGEST_LINE = 2**24
"""Bytes of a row that are kept. A longer row is damaged, or the file is not a table."""
_CHUNK = 2**16
_MARK = "\ufeff"
_MOST_LINES = 1_000
"""Lines over which a quoted field may extend."""
csv.field_size_limit(_LONGEST_LINE)


class _Dialect(csv.excel):
    skipinitialspace, strict = True, True


_DIALECTS = {
    separator: csv.reader((), _Dialect, delimiter=separator).dialect for separator in SEPARATORS
}

type _Line = tuple[int | None, bytes]
"""The byte behind a line, None if reading cannot start there, and its content."""
type Row = Mapping[str, Any] | Fault | None
"""Values by name in lower case, the fault of an unreadable row, or None for a blank one."""


def read_table(
    url: str,
    layout: Layout,
    start: int = 0,
    stop: int | None = None,
    first_row: int = 0,
    *,
    root: str = "",
    with_images: bool = True,
) -> Iterator[Sample]:
    """Yields the rows of a table.

    Args:
        url: The file.
        layout: Its layout.
        start: Byte at which a row begins; 0 is the start of the file.
        stop: Byte at which a later row begins; None reads to the end.
        first_row: Number of the first row, for messages.
        root: Folder of the input, where files are searched that a list names.
        with_images: Whether the files that a list names are read.
    """
    names = FILE_NAMES if with_images else ()
    number = first_row
    try:
        for number, (_, row) in enumerate(_rows(url, layout, start, stop), first_row):
            place = f"{url}, row {number + 1}"
            if isinstance(row, Fault):
                yield Sample(place=place, fault=row)
            elif row is not None:
                yield row_sample(row, place, url, names, root=root)
    except UNREADABLE as error:
        yield Sample(
            place=f"{url}, behind row {number + 1}",
            fault=Fault("unreadable file", first_line(error)),
        )


def table_rows(url: str, layout: Layout) -> Iterator[Row]:
    """Yields the rows of a table without their samples.

    Raises:
        OSError, EOFError, zlib.error, lzma.LZMAError: the rest of the file cannot be read.
    """
    return (row for _, row in _rows(url, layout, 0, None))


def table_spans(url: str, layout: Layout, rows: int) -> list[tuple[int, int | None, int]]:
    """Returns `start`, `stop` and `first_row` of `read_table` for pieces of `rows` rows.

    The last piece may be shorter or longer, and has no `stop`.
    """
    spans, start, first = [], 0, 0
    try:
        for number, (offset, _) in enumerate(_rows(url, layout, 0, None), 1):
            if offset is None:
                break
            if number % rows == 0:
                spans.append((start, offset, first))
                start, first = offset, number
    except UNREADABLE:
        pass  # The reader of the last piece gives the reason.
    return [*spans, (start, None, first)]


def _rows(
    url: str, layout: Layout, start: int, stop: int | None
) -> Iterator[tuple[int | None, Row]]:
    """Yields, for each row, the byte behind it, and the row."""
    with open_file(url) as file:
        if layout.form == "document":
            yield from ((None, row) for row in read_document(file))
            return
        lines = _characters(file, layout.encoding) if layout.encoding else _bytes(file, start)
        if not start:
            lines = itertools.dropwhile(lambda line: is_preamble(_text(line[1])), lines)
            if layout.form == "columns":
                next(lines, None)  # The names of the columns.
        readers = {"columns": _columns, "json": _objects, "text": _texts}
        for offset, row in readers[layout.form](lines, layout):
            yield offset, row
            if stop is not None and offset is not None and offset >= stop:
                return


def _bytes(file: Any, start: int) -> Iterator[_Line]:
    """Yields the lines from a byte on, of each at most the first `_LONGEST_LINE` bytes."""
    has_offsets, offset = not is_compressed(file), start
    if start:
        file.seek(start)
    while line := file.readline(_LONGEST_LINE):
        if not offset:
            offset, line = _without_mark(line)
        offset += len(line)
        rest = line
        while len(rest) == _LONGEST_LINE and not rest.endswith(b"\n"):
            rest = file.readline(_LONGEST_LINE)
            offset += len(rest)
        yield offset if has_offsets else None, line


def _without_mark(line: bytes) -> tuple[int, bytes]:
    """Returns the size of the byte order mark of a file's first line, and the rest."""
    plain = line.removeprefix(codecs.BOM_UTF8)
    return len(line) - len(plain), plain


def _characters(file: Any, encoding: str) -> Iterator[_Line]:
    """Yields the lines of a file in another encoding, or with line ends of another kind."""
    decode = codecs.getincrementaldecoder(encoding)("replace")
    decoder, rest, is_last = io.IncrementalNewlineDecoder(decode, translate=True), "", False
    while not is_last:
        chunk = file.read(_CHUNK)
        is_last = not chunk
        *lines, rest = (rest + decoder.decode(chunk, final=is_last)).split("\n")
        for line in [*lines, rest] if is_last else lines:
            yield None, f"{line.removeprefix(_MARK)[:_LONGEST_LINE]}\n".encode()


def _columns(lines: Iterable[_Line], layout: Layout) -> Iterator[tuple[int | None, Row]]:
    ahead = _Ahead(lines)
    header, separator = layout.header, layout.separator
    mark, is_single = separator.encode(), len(header) == 1
    for offset, line in ahead:
        if not line.strip():
            yield offset, None
            continue
        text = _text(line).rstrip("\r\n")
        if '"' in text:
            offset, fields = _quoted_fields(text, offset, ahead, layout)
        else:
            fields = text.split(separator)
            if not is_single and _is_rest_of_row(ahead.peek(), mark):
                # Which of both is damaged is not known: half a caption is worse than none.
                while _is_rest_of_row(ahead.peek(), mark):
                    offset, _ = next(ahead)
                fields = Fault("row broken over several lines", text[:60])
        if isinstance(fields, Fault):
            yield offset, fields
        elif len(fields) > len(header) and any(fields[len(header) :]):
            number = f"{len(fields)} instead of {len(header)}: {text[:60]}"
            yield offset, Fault("row with more fields than the header", number)
        else:
            yield offset, dict(zip(header, fields, strict=False))


class _Ahead:
    """Lines that can be looked at before they are taken, and given back."""

    def __init__(self, lines: Iterable[_Line]):
        self._lines, self._ready = iter(lines), collections.deque[_Line]()

    def __iter__(self) -> Iterator[_Line]:
        return self

    def __next__(self) -> _Line:
        return self._ready.popleft() if self._ready else next(self._lines)

    def give_back(self, lines: list[_Line]) -> None:
        self._ready.extendleft(reversed(lines))

    def peek(self) -> bytes:
        """Returns the content of the next line; empty at the end."""
        if not self._ready:
            for line in self._lines:
                self._ready.append(line)
                break
        return self._ready[0][1] if self._ready else b""


_NAME = re.compile(rb"\.[A-Za-z0-9]{2,5}\s*$")


def _is_rest_of_row(line: bytes, separator: bytes) -> bool:
    """Returns whether a line has one field, and not the name of a file."""
    return separator not in line and bool(line.strip()) and _NAME.search(line) is None


def _quoted_fields(
    text: str, offset: int | None, ahead: _Ahead, layout: Layout
) -> tuple[int | None, list[str] | Fault]:
    """Returns the byte behind a row with quotes, and its fields.

    A quoted field may extend over lines. A quote that does not close costs its own row only.
    """
    # In tab-separated lists, such as CC12M's, quotes are part of the caption.
    is_raw = layout.separator == "\t"
    if is_raw:
        raw = text.split("\t")
        if not (raw[-1].startswith('"') and raw[-1].count('"') % 2):
            return offset, list(map(_unquoted, raw))
    else:
        with contextlib.suppress(csv.Error):
            return offset, next(csv.reader((text,), _DIALECTS[layout.separator]))
    taken: list[_Line] = []

    def more() -> Iterator[str]:
        yield f"{text}\n"
        for offset, line in itertools.islice(ahead, _MOST_LINES):
            taken.append((offset, line))
            if is_raw and line.count(b"\t") >= len(layout.header) - 1 > 0:
                return  # A row of its own.
            yield _text(line)

    try:
        fields = next(csv.reader(more(), _DIALECTS[layout.separator]))
    except csv.Error as error:
        ahead.give_back(taken)
        if is_raw:
            return offset, list(map(_unquoted, text.split("\t")))
        fault = Fault("unreadable row", f"{first_line(error)}: {text[:60]}")
        return offset, _with_escapes(text, layout) or fault
    return taken[-1][0], fields


def _with_escapes(text: str, layout: Layout) -> list[str]:
    """Returns the fields of a row whose quotes are escaped by backslashes; nothing for others."""
    if '\\"' not in text:
        return []
    try:
        return next(
            csv.reader((text,), _DIALECTS[layout.separator], escapechar="\\", doublequote=False)
        )
    except csv.Error:
        return []


def _unquoted(field: str) -> str:
    """Returns a field without quotes around all of it. `"Merry" and "Happy"` has none of these."""
    inner = field[1:-1].replace('""', "")
    is_quoted = len(field) > 1 and field[0] == field[-1] == '"' and '"' not in inner
    return field[1:-1].replace('""', '"') if is_quoted else field


def _objects(lines: Iterable[_Line], layout: Layout) -> Iterator[tuple[int | None, Row]]:
    for offset, line in lines:
        try:
            row = json.loads(_text(line)) if line.strip() else None
        except (ValueError, RecursionError) as error:
            yield offset, Fault("not JSON", first_line(error))
            continue
        if row is None or isinstance(row, dict):
            yield offset, row and {name.lower(): value for name, value in row.items()}
        else:
            yield offset, Fault("not a JSON object", _text(line)[:60])


def _texts(lines: Iterable[_Line], layout: Layout) -> Iterator[tuple[int | None, Row]]:
    return ((offset, {"text": line} if line.strip() else None) for offset, line in lines)


def _text(line: bytes) -> str:
    # Bytes that are not UTF-8 stay as they are: cleaning finds them, and drops this row only.
    return line.decode("utf-8", "surrogateescape")
