"""Parquet and HDF5: rows of image bytes and texts, each row readable whatever happened to the others."""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from m3ae_tpu.config import ConfigError, require
from m3ae_tpu.data.prepare.samples import (
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
    module,
    open_seekable,
    read_whole,
)

_ROWS_AT_A_TIME = 32
_DAMAGE = (*UNREADABLE, LookupError, ValueError, TypeError, RuntimeError, MemoryError, OverflowError)
"""What pyarrow and h5py raise for damaged files: errors of every kind, where bytes that describe the data flipped."""


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
    except ConfigError:
        raise
    except _DAMAGE as error:
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
    except _DAMAGE as error:
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
        path = image.get("path")
        image = image.get("bytes")
        if image is None and path:
            try:
                image = read_whole(os.path.join(os.path.dirname(url), path))
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
        ConfigError: the file has no column that `kind` needs, or addresses instead of images.
    """
    try:
        with open_seekable(url) as file:
            table = _parquet(file, url)
            _require_columns(table.schema_arrow.names, url, kind)
            return _group_counts(table, file)
    except ConfigError:
        raise
    except _DAMAGE:
        return []  # Whoever reads it will say why.


def _require_columns(names: list[str], url: str, kind: str) -> None:
    lowered = {name.lower() for name in names}
    needed = CAPTION_NAMES if kind == "text" else IMAGE_NAMES
    require(
        bool(lowered.intersection(needed)) or not lowered.intersection(URL_NAMES) or kind == "text",
        f"--input = {url} holds addresses of images, not images. Download them first: "
        "img2dataset --url_list=FILE --input_format=parquet --output_format=webdataset.",
    )
    require(
        bool(lowered.intersection(needed)),
        f"--input = {url} has the columns {', '.join(names[:8])}; --kind={kind} needs one named "
        f"{', '.join(needed)}. Rename one.",
    )


def _group_counts(table: Any, file: Any) -> list[int]:
    counts = [table.metadata.row_group(group).num_rows for group in range(table.num_row_groups)]
    _require_plausible(counts, file)
    return counts


def _require_plausible(counts: list[int], file: Any) -> None:
    """Refuses numbers of rows that a file of this size cannot hold: damage must not make faults without end.

    Raises:
        ValueError: the numbers must be damaged.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if any(count < 0 for count in counts) or sum(counts) > 64 * size:
        raise ValueError("damaged number of rows")


def read_hdf5(url: str, prefix: str = "", start: int = 0, stop: int | None = None) -> Iterator[Sample]:
    """Yields rows of the paper's HDF5 files: `jpg` with `caption` or `text`, or `train_jpg` with `train_labels`.

    Args:
        url: The file.
        prefix: Of the arrays' names, like `train_`.
        start: Row to begin with.
        stop: Row to end before; None reads all.
    """
    try:
        with open_seekable(url) as file, _hdf5(file, url) as stored:
            arrays = _arrays(stored, url)[prefix]
            count = max(len(array) for array in arrays.values())
            _require_plausible([count], file)
            numbers = range(count)[start:stop]
            for first in range(0, len(numbers), _ROWS_AT_A_TIME):
                rows = numbers[first : first + _ROWS_AT_A_TIME]
                yield from _hdf5_samples(arrays, f"{url}, {prefix}row", rows)
    except ConfigError:
        raise
    except _DAMAGE as error:
        yield Sample(place=url, fault=f"unreadable file: {first_line(error)}")


def _hdf5_samples(arrays: Mapping[str, Any], place: str, numbers: range) -> Iterator[Sample]:
    try:
        columns = {name: array[numbers.start : numbers.stop] for name, array in arrays.items()}
    except _DAMAGE as error:
        if len(numbers) == 1:
            yield Sample(place=f"{place} {numbers.start}", fault=f"unreadable row: {first_line(error)}")
        else:  # One of them: which, is found row by row.
            for number in numbers:
                yield from _hdf5_samples(arrays, place, range(number, number + 1))
        return
    for index, number in enumerate(numbers):
        row = {name: column[index] for name, column in columns.items() if index < len(column)}
        caption, image = first_of(row, CAPTION_NAMES), row.get("jpg")
        yield Sample(
            place=f"{place} {number}",
            image=None if image is None else bytes(image),
            captions=() if caption is None else as_captions(_unpacked(caption)),
            label=as_label(_unpacked(row["labels"])) if "labels" in row else "",
        )


def _unpacked(value: Any) -> Any:
    """Returns text as bytes, from an array of them too; numbers as they are."""
    return (
        value
        if isinstance(value, str) or not hasattr(value, "tobytes") or value.shape == ()
        else bytes(value)
    )


def _hdf5(file: Any, url: str) -> Any:
    return module("h5py", url).File(file, "r")


def _arrays(stored: Any, url: str) -> dict[str, dict[str, Any]]:
    """Returns, by prefix, the arrays that belong together.

    Raises:
        ConfigError: there are none.
    """
    names = [name for name in stored if hasattr(stored[name], "shape")]
    prefixes = sorted(
        {name.removesuffix(end) for name in names for end in ("jpg", "caption", "text") if name.endswith(end)}
    )
    if not prefixes:
        raise ConfigError(
            f"--input = {url} holds {', '.join(names[:8]) or 'no arrays'}; expected jpg, caption or text."
        )
    return {
        prefix: {
            name: stored[prefix + name]
            for name in ("jpg", "caption", "text", "labels")
            if prefix + name in names
        }
        for prefix in prefixes
    }


def hdf5_rows(url: str) -> dict[str, int]:
    """Returns, by prefix of the arrays, the number of rows; nothing for a damaged file.

    Raises:
        ConfigError: no array of the paper's layout is in the file.
    """
    try:
        with open_seekable(url) as file, _hdf5(file, url) as stored:
            counts = {
                prefix: max(len(array) for array in arrays.values())
                for prefix, arrays in _arrays(stored, url).items()
            }
            _require_plausible(list(counts.values()), file)
            return counts
    except ConfigError:
        raise
    except _DAMAGE:
        return {}
