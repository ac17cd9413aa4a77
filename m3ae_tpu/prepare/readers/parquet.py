"""Parquet files: rows of images and texts. A damaged row costs no other row."""

from collections.abc import Iterator
from typing import Any

from m3ae_tpu.errors import UserError, require
from m3ae_tpu.prepare.opening import DAMAGE, import_optional, open_seekable, require_plausible
from m3ae_tpu.prepare.samples import (
    CAPTION_NAMES,
    IMAGE_NAMES,
    LABEL_NAMES,
    URL_NAMES,
    Fault,
    Sample,
    first_line,
    first_of,
    is_address,
    row_sample,
)

_ROWS_AT_A_TIME = 32
_ADDRESSES = (
    "--input = {url} holds addresses of images, not images. Download them first: "
    "img2dataset --url_list=FILE --input_format=parquet --output_format=webdataset."
)


def read_parquet(url: str, start: int = 0, stop: int | None = None) -> Iterator[Sample]:
    """Yields the rows of a parquet file.

    Args:
        url: The file.
        start: Row group to begin with.
        stop: Row group to end before; None reads all.
    """
    try:
        with open_seekable(url) as file:
            table = _parquet(file, url)
            column_names = {*IMAGE_NAMES, *CAPTION_NAMES, *LABEL_NAMES}
            wanted = [name for name in table.schema_arrow.names if name.lower() in column_names]
            counts = _group_counts(table, file)
            for group in range(len(counts))[start:stop]:
                yield from _row_group(table, group, wanted, url, sum(counts[:group]), counts[group])
    except UserError:
        raise
    except DAMAGE as error:
        yield Sample(place=url, fault=Fault("unreadable file", first_line(error)))


def _row_group(
    table: Any, group: int, wanted: list[str], url: str, number: int, count: int
) -> Iterator[Sample]:
    last = number + count
    try:
        for batch in table.iter_batches(_ROWS_AT_A_TIME, row_groups=[group], columns=wanted):
            for row in range(batch.num_rows):
                yield _sample(batch.slice(row, 1), f"{url}, row {number}", url)
                number += 1
        fault = Fault("unreadable row", "fewer rows than announced")
    except DAMAGE as error:
        fault = Fault("unreadable row", first_line(error))
    yield from (Sample(place=f"{url}, row {lost}", fault=fault) for lost in range(number, last))


def _sample(batch: Any, place: str, url: str) -> Sample:
    try:
        (row,) = batch.to_pylist()
    except UnicodeDecodeError:
        return Sample(place=place, fault=Fault("text is not UTF-8"))
    return row_sample({name.lower(): value for name, value in row.items()}, place, url)


def _parquet(file: Any, url: str) -> Any:
    return import_optional("pyarrow.parquet", url).ParquetFile(file, pre_buffer=False)


def parquet_row_groups(url: str, kind: str) -> list[int]:
    """Returns the number of rows of each row group, nothing for a damaged file.

    Raises:
        UserError: the file has no column that `kind` needs, or addresses instead of images.
    """
    try:
        with open_seekable(url) as file:
            table = _parquet(file, url)
            _require_columns(table.schema_arrow.names, url, kind)
            counts = _group_counts(table, file)
            if kind != "text":
                _require_no_addresses(table, url)
            return counts
    except UserError:
        raise
    except DAMAGE:
        return []  # Its reader gives the reason.


def _require_no_addresses(table: Any, url: str) -> None:
    columns = [name for name in table.schema_arrow.names if name.lower() in IMAGE_NAMES]
    try:
        rows = next(table.iter_batches(1, columns=columns)).to_pylist()
    except (StopIteration, *DAMAGE):
        return  # Empty, or damaged: its reader gives the reason.
    require(not any(is_address(first_of(row, columns)) for row in rows), _ADDRESSES.format(url=url))


def holds_images(url: str) -> bool:
    """Returns whether a parquet file has a column of images.

    img2dataset leaves lists without one beside its tars.
    """
    try:
        return bool(parquet_row_groups(url, "image"))
    except UserError:
        return False


def _require_columns(names: list[str], url: str, kind: str) -> None:
    lowered = {name.lower() for name in names}
    needed = CAPTION_NAMES if kind == "text" else IMAGE_NAMES
    require(
        bool(lowered.intersection(needed)) or not lowered.intersection(URL_NAMES) or kind == "text",
        _ADDRESSES.format(url=url),
    )
    require(
        bool(lowered.intersection(needed)),
        f"--input = {url} has the columns {', '.join(names[:8])}; --kind={kind} needs one named "
        f"{', '.join(needed)}. Rename one.",
    )


def _group_counts(table: Any, file: Any) -> list[int]:
    counts = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
    require_plausible(counts, file)
    return counts
