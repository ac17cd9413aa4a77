"""Parquet: rows of image bytes and texts, each readable whatever happened to the others."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from m3ae_tpu.errors import UserError, require
from m3ae_tpu.prepare.samples import (
    CAPTION_NAMES,
    IMAGE_NAMES,
    LABEL_NAMES,
    UNREADABLE,
    URL_NAMES,
    Sample,
    as_captions,
    as_label,
    first_line,
    first_of,
    is_address,
    module,
    open_seekable,
    read_whole,
)

_ROWS_AT_A_TIME = 32
_ADDRESSES = (
    "--input = {url} holds addresses of images, not images. Download them first: "
    "img2dataset --url_list=FILE --input_format=parquet --output_format=webdataset."
)
DAMAGE = (*UNREADABLE, LookupError, ValueError, TypeError, RuntimeError, MemoryError, OverflowError)
"""What pyarrow and h5py raise for damaged files: errors of every kind, where bytes that describe
the data flipped.
"""


def read_parquet(url: str, start: int = 0, stop: int | None = None) -> Iterator[Sample]:
    """Yields the rows of a parquet file: image bytes, or Hugging Face's struct of bytes and path.

    Args:
        url: The file.
        start: Row group to begin with.
        stop: Row group to end before; None reads all.
    """
    try:
        with open_seekable(url) as file:
            table = _parquet(file, url)
            known = {*IMAGE_NAMES, *CAPTION_NAMES, *LABEL_NAMES}
            wanted = [name for name in table.schema_arrow.names if name.lower() in known]
            counts = _group_counts(table, file)
            for group in range(len(counts))[start:stop]:
                yield from _row_group(table, group, wanted, url, sum(counts[:group]), counts[group])
    except UserError:
        raise
    except DAMAGE as error:
        yield Sample(place=url, fault=f"unreadable file: {first_line(error)}")


def _row_group(
    table: Any, group: int, wanted: list[str], url: str, number: int, count: int
) -> Iterator[Sample]:
    last = number + count
    try:
        for batch in table.iter_batches(_ROWS_AT_A_TIME, row_groups=[group], columns=wanted):
            for row in range(batch.num_rows):
                yield _parquet_sample(batch.slice(row, 1), f"{url}, row {number}", url)
                number += 1
        reason = "unreadable row: fewer rows than announced"
    except DAMAGE as error:
        reason = f"unreadable row: {first_line(error)}"
    yield from (Sample(place=f"{url}, row {lost}", fault=reason) for lost in range(number, last))


def _parquet_sample(batch: Any, place: str, url: str) -> Sample:
    try:
        (row,) = batch.to_pylist()
    except UnicodeDecodeError:
        return Sample(place=place, fault="text is not UTF-8")
    row = {name.lower(): value for name, value in row.items()}
    image = first_of(row, IMAGE_NAMES)
    if isinstance(image, Mapping):
        image = image.get("bytes") if image.get("bytes") is not None else image.get("path")
    if isinstance(image, str):
        if is_address(image):
            return Sample(place=place, fault="address instead of an image file")
        try:
            image = read_whole(os.path.join(os.path.dirname(url), image))
        except UNREADABLE as error:
            return Sample(place=place, fault=f"unreadable image file: {first_line(error)}")
    return Sample(
        place=place,
        image=image if isinstance(image, bytes) else None,
        captions=as_captions(first_of(row, CAPTION_NAMES)),
        label=as_label(first_of(row, LABEL_NAMES)),
    )


def _parquet(file: Any, url: str) -> Any:
    module("pyarrow", url)
    return module("pyarrow.parquet", url).ParquetFile(file, pre_buffer=False)


def parquet_row_groups(url: str, kind: str) -> list[int]:
    """Returns the number of rows of each group, none for a damaged file.

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
        return []  # Whoever reads it will say why.


def _require_no_addresses(table: Any, url: str) -> None:
    columns = [name for name in table.schema_arrow.names if name.lower() in IMAGE_NAMES]
    try:
        rows = next(table.iter_batches(1, columns=columns)).to_pylist()
    except (StopIteration, *DAMAGE):
        return  # Empty, or damaged: whoever reads it will say so.
    require(not any(is_address(first_of(row, columns)) for row in rows), _ADDRESSES.format(url=url))


def holds_images(url: str) -> bool:
    """Returns whether a parquet file has a column of images, unlike the lists of what img2dataset
    downloaded.
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


def require_plausible(counts: list[int], file: Any) -> None:
    """Refuses numbers of rows that a file of this size cannot hold: damage must not make faults
    without end.

    Raises:
        ValueError: the numbers must be damaged.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if any(count < 0 for count in counts) or sum(counts) > size:
        raise ValueError("damaged number of rows")
