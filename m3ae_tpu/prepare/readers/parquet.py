"""Parquet files: rows of images and texts. A damaged row costs no other row."""

import contextlib
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from m3ae_tpu.errors import UserError
from m3ae_tpu.prepare.opening import DAMAGE, import_optional, open_seekable, require_plausible
from m3ae_tpu.prepare.samples import (
    CAPTION_NAMES,
    FILE_NAMES,
    IMAGE_NAMES,
    LABEL_NAMES,
    URL_NAMES,
    Fault,
    Sample,
    first_line,
    row_sample,
)

_ROWS_AT_A_TIME = 32
_IMAGE_COLUMNS = (*IMAGE_NAMES, *FILE_NAMES)
_COLUMNS = frozenset((*_IMAGE_COLUMNS, *CAPTION_NAMES, *LABEL_NAMES, *URL_NAMES))


def read_parquet(
    url: str,
    start: int = 0,
    stop: int | None = None,
    *,
    root: str = "",
    with_images: bool = True,
) -> Iterator[Sample]:
    """Yields the rows of a parquet file, numbered from 1.

    Args:
        url: The file.
        start: Row group to begin with.
        stop: Row group to end before; None reads all.
        root: Folder of the input, where files are searched that a row names.
        with_images: Whether images are read.
    """
    image_columns = _IMAGE_COLUMNS if with_images else ()
    wanted = frozenset((*image_columns, *CAPTION_NAMES, *LABEL_NAMES))
    try:
        with _open(url) as (table, counts):
            label_names = _label_names(table.schema_arrow.metadata)
            for group in range(len(counts))[start:stop]:
                first = sum(counts[:group])
                for number, row in enumerate(
                    _row_group(table, group, counts[group], wanted), first + 1
                ):
                    place = f"{url}, row {number}"
                    if isinstance(row, Fault):
                        yield Sample(place=place, fault=row)
                    else:
                        row |= _named_labels(row, label_names)
                        yield row_sample(row, place, url, image_columns, root=root)
    except UserError:
        raise
    except DAMAGE as error:
        yield Sample(place=url, fault=Fault("unreadable file", first_line(error)))


def parquet_head(url: str, num_rows: int) -> tuple[frozenset[str], list[dict[str, Any]]] | None:
    """Returns the names of all columns, in lower case, and the first rows of those that are known.

    Returns None for a damaged file.
    """
    try:
        with _open(url) as (table, counts):
            names = frozenset(name.lower() for name in table.schema_arrow.names)
            groups = itertools.chain.from_iterable(
                _row_group(table, group, count) for group, count in enumerate(counts)
            )
            rows = itertools.islice(groups, num_rows)
            return names, [row for row in rows if not isinstance(row, Fault)]
    except UserError:
        raise
    except DAMAGE:
        return None


def parquet_names(url: str) -> Iterator[dict[str, Any] | Fault]:
    """Yields the columns of each row that may name an image file.

    Raises:
        OSError, EOFError, zlib.error, lzma.LZMAError: the file cannot be read.
    """
    with _open(url) as (table, counts):
        for group, count in enumerate(counts):
            yield from _row_group(table, group, count, frozenset(FILE_NAMES))


def parquet_row_groups(url: str) -> list[int]:
    """Returns the number of rows of each row group, nothing for a damaged file."""
    try:
        with _open(url) as (_, counts):
            return counts
    except UserError:
        raise
    except DAMAGE:
        return []  # Its reader gives the reason.


@contextlib.contextmanager
def _open(url: str) -> Iterator[tuple[Any, list[int]]]:
    """Opens a file, and yields it with the number of rows of each row group."""
    with open_seekable(url) as file:
        table = import_optional("pyarrow.parquet", url).ParquetFile(file, pre_buffer=False)
        counts = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
        require_plausible(counts, file)
        yield table, counts


def _row_group(
    table: Any, group: int, count: int, wanted: frozenset[str] = _COLUMNS
) -> Iterator[dict[str, Any] | Fault]:
    """Yields the wanted columns of each row of a group, or the row's fault."""
    columns = [name for name in table.schema_arrow.names if name.lower() in wanted]
    number, fault = 0, Fault("unreadable row", "fewer rows than announced")
    try:
        for batch in table.iter_batches(_ROWS_AT_A_TIME, row_groups=[group], columns=columns):
            for row in range(batch.num_rows):
                yield _values(batch.slice(row, 1))
                number += 1
    except DAMAGE as error:
        fault = Fault("unreadable row", first_line(error))
    yield from itertools.repeat(fault, count - number)


def _values(batch: Any) -> dict[str, Any] | Fault:
    try:
        (row,) = batch.to_pylist()
    except UnicodeDecodeError as error:
        return Fault("text is not UTF-8", first_line(error))
    return {name.lower(): value for name, value in row.items()}


def _label_names(metadata: Mapping[bytes, bytes] | None) -> dict[str, list[str]]:
    """Returns the names of the classes of each column, as Hugging Face stores them."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {
            column.lower(): feature["names"]
            for column, feature in features.items()
            if isinstance(feature, dict) and isinstance(feature.get("names"), list)
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}  # Other programs write no such description.


def _named_labels(row: Mapping[str, Any], label_names: Mapping[str, list[str]]) -> dict[str, str]:
    """Returns the names of the classes that a row gives as numbers."""
    return {
        column: names[row[column]]
        for column, names in label_names.items()
        if isinstance(row.get(column), int) and 0 <= row[column] < len(names)
    }
