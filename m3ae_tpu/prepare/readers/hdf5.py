"""The HDF5 files of the paper's code: rows of image bytes and texts or labels.

The HDF5 library may loop forever or crash on damaged data, so it works in a process of its own,
with a limit of its computing time; what that process dies of costs one row.
"""

import multiprocessing
import resource
from collections.abc import Generator, Iterator, Mapping
from multiprocessing.connection import Connection
from typing import Any

from m3ae_tpu.errors import UserError, require
from m3ae_tpu.prepare.readers.parquet import DAMAGE, require_plausible
from m3ae_tpu.prepare.samples import (
    CAPTION_NAMES,
    Sample,
    as_captions,
    as_label,
    first_line,
    first_of,
    module,
    open_seekable,
)

_ROWS_AT_A_TIME = 32
_SECONDS_TO_OPEN, _SECONDS_TO_READ = 30, 1
"""Of computing, for a file and for so many rows, which take a hundredth of it; what takes longer
does not end.
"""
_MOST_DEATHS = 16
"""In one part, before the rest of its rows are given up."""


def read_hdf5(
    url: str, prefix: str = "", start: int = 0, stop: int | None = None
) -> Iterator[Sample]:
    """Yields rows of the paper's HDF5 files: `jpg` with `caption` or `text`, or `train_jpg` with
    `train_labels`.

    Args:
        url: The file.
        prefix: Of the arrays' names, like `train_`.
        start: Row to begin with.
        stop: Row to end before; None reads all.
    """
    row, careful, deaths = start, start, 0
    while True:
        counts = None
        for message in _messages(url, prefix, row, stop, careful):
            if counts is None:
                counts = message
                if isinstance(counts, str):
                    yield Sample(place=url, fault=counts)
                    return
                continue
            if message is None:
                return
            yield from message
            row += len(message)
        if counts is None:
            yield Sample(place=url, fault="unreadable file: it crashes its reader")
            return
        # The reader died: of one row among some, which then are read one by one.
        deaths += 1
        last = counts[prefix] if stop is None else min(stop, counts[prefix])
        lost = range(row, last if deaths > _MOST_DEATHS else row + 1 if row < careful else row)
        for number in lost:
            yield Sample(
                place=_place(url, prefix, number), fault="unreadable row: it crashes its reader"
            )
        row, careful = row + len(lost), max(careful, row + _ROWS_AT_A_TIME)
        if row >= last:
            return


def hdf5_rows(url: str) -> dict[str, int]:
    """Returns, by prefix of the arrays, the number of rows; nothing for a damaged file.

    Raises:
        UserError: no array of the paper's layout is in the file, or h5py is not installed.
    """
    messages = _messages(url, None, 0, 0, 0)
    counts = next(messages, {})
    messages.close()
    if isinstance(counts, UserError):
        raise counts
    return {} if isinstance(counts, str) else counts


def _messages(
    url: str, prefix: str | None, start: int, stop: int | None, careful: int
) -> Generator[Any]:
    """Yields what `_send` sends, until it is done or dies."""
    module("h5py", url)  # Where it is missing, here is who can say so.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(
        target=_send, args=(theirs, url, prefix, start, stop, careful), daemon=True
    )
    process.start()
    theirs.close()
    try:
        while True:
            yield ours.recv()
    except EOFError:
        return
    finally:
        ours.close()
        process.kill()
        process.join()


def _send(
    pipe: Connection, url: str, prefix: str | None, start: int, stop: int | None, careful: int
) -> None:
    """Sends the number of rows by prefix, or why there are none; then lists of samples of the rows;
    then None.
    """
    _limit_cpu_time(_SECONDS_TO_OPEN)
    try:
        with open_seekable(url) as file, module("h5py", url).File(file, "r") as stored:
            sets = _sets(stored, url)
            counts = {
                name: max(len(array) for array in arrays.values()) for name, arrays in sets.items()
            }
            # A row takes 16 bytes for where its content lies.
            require_plausible([count * 16 for count in counts.values()], file)
            pipe.send(counts)
            numbers = range(counts[prefix])[start:stop] if prefix is not None else range(0)
            while numbers:
                _limit_cpu_time(_SECONDS_TO_READ)
                size = 1 if numbers.start < careful else _ROWS_AT_A_TIME
                pipe.send(list(_samples(sets[prefix or ""], url, prefix or "", numbers[:size])))
                numbers = numbers[size:]
            pipe.send(None)
    except UserError as error:
        pipe.send(error)
    except BrokenPipeError:
        pass  # Nobody listens any more.
    except DAMAGE as error:
        pipe.send(f"unreadable file: {first_line(error)}")


def _limit_cpu_time(seconds: int) -> None:
    """Has the system end this process if it computes much longer."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime) + 1 + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _samples(arrays: Mapping[str, Any], url: str, prefix: str, numbers: range) -> Iterator[Sample]:
    try:
        columns = {name: array[numbers.start : numbers.stop] for name, array in arrays.items()}
    except DAMAGE as error:
        if len(numbers) == 1:
            fault = f"unreadable row: {first_line(error)}"
            yield Sample(place=_place(url, prefix, numbers.start), fault=fault)
        else:  # One of them: which, is found row by row.
            for number in numbers:
                yield from _samples(arrays, url, prefix, range(number, number + 1))
        return
    for index, number in enumerate(numbers):
        row = {name: column[index] for name, column in columns.items() if index < len(column)}
        caption, image = first_of(row, CAPTION_NAMES), row.get("jpg")
        yield Sample(
            place=_place(url, prefix, number),
            image=None if image is None else bytes(image),
            captions=() if caption is None else as_captions(_unpacked(caption)),
            label=as_label(_unpacked(row["labels"])) if "labels" in row else "",
        )


def _place(url: str, prefix: str, number: int) -> str:
    return f"{url}, {prefix}row {number + 1}"


def _unpacked(value: Any) -> Any:
    """Returns text as bytes, from an array of them too; numbers as they are."""
    return bytes(value) if getattr(value, "shape", ()) else value


def _sets(stored: Any, url: str) -> dict[str, dict[str, Any]]:
    """Returns, by prefix, the arrays that belong together.

    Raises:
        UserError: there are none.
    """
    names = [name for name in stored if hasattr(stored[name], "shape")]
    endings = ("jpg", "caption", "text")
    prefixes = sorted(
        {name.removesuffix(end) for name in names for end in endings if name.endswith(end)}
    )
    require(
        bool(prefixes),
        f"--input = {url} holds {', '.join(names[:8]) or 'no arrays'}; expected jpg, caption or text.",
    )
    return {
        prefix: {
            name: stored[prefix + name] for name in (*endings, "labels") if prefix + name in names
        }
        for prefix in prefixes
    }
