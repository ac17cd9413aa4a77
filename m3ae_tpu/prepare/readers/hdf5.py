"""The HDF5 files of the paper's code: rows of image bytes and texts or labels.

On damaged data the HDF5 library may loop forever or crash. It therefore runs in a child process
with a limit on its CPU time, and a row that kills that process is dropped.
"""

import multiprocessing
import resource
from collections.abc import Generator, Iterator, Mapping
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from m3ae_tpu.prepare.opening import DAMAGE, import_optional, open_seekable, require_plausible
from m3ae_tpu.prepare.samples import Fault, Sample, first_line, row_sample

_ROWS_AT_A_TIME = 32
_SECONDS_TO_OPEN, _SECONDS_TO_READ = 30, 1
"""CPU time to open a file and to read `_ROWS_AT_A_TIME` rows: a hundred times what they take."""
OTHER_ARRAYS = "HDF5 of another layout"
"""Reason of a fault: the file can be read, but has none of the arrays."""
_MOST_DEATHS = 16
"""Crashes in one piece after which the rest of its rows are dropped."""


def read_hdf5(
    url: str, prefix: str = "", start: int = 0, stop: int | None = None
) -> Iterator[Sample]:
    """Yields the rows of an HDF5 file of the paper's code.

    These hold `jpg` with `caption` or `text`, or `train_jpg` with `train_labels`.

    Args:
        url: The file.
        prefix: Start of the arrays' names, `train_` for example.
        start: Row to begin with.
        stop: Row to end before; None reads all.
    """
    row, one_by_one, deaths = start, start, 0
    while True:
        counts = None
        for message in _messages(url, prefix, row, stop, one_by_one):
            if counts is None:
                counts = message
                if isinstance(counts, Fault):
                    yield Sample(place=url, fault=counts)
                    return
                continue
            if message is None:
                return
            yield from message
            row += len(message)
        if counts is None:
            yield Sample(place=url, fault=Fault("unreadable file", "it crashes its reader"))
            return
        # The child died of one row among those that it read together. The next child reads these
        # one by one: if it dies before its first row, that row is the one.
        deaths += 1
        last = counts[prefix] if stop is None else min(stop, counts[prefix])
        lost = range(row, last if deaths > _MOST_DEATHS else row + 1 if row < one_by_one else row)
        for number in lost:
            yield Sample(
                place=_place(url, prefix, number),
                fault=Fault("unreadable row", "it crashes its reader"),
            )
        row, one_by_one = row + len(lost), max(one_by_one, row + _ROWS_AT_A_TIME)
        if row >= last:
            return


def hdf5_rows(url: str) -> dict[str, int] | Fault:
    """Returns the number of rows by prefix of the arrays, or the fault of the file.

    Raises:
        UserError: h5py is not installed.
    """
    messages = _messages(url, None, 0, 0, 0)
    counts = next(messages, Fault("unreadable file", "it crashes its reader"))
    messages.close()
    return counts


def _messages(
    url: str, prefix: str | None, start: int, stop: int | None, one_by_one: int
) -> Generator[Any]:
    """Yields what `_send` sends from a child process, until that ends or dies."""
    import_optional("h5py", url)  # Raises here, in the parent, if it is not installed.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(
        target=_send, args=(theirs, url, prefix, start, stop, one_by_one), daemon=True
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
    pipe: Connection, url: str, prefix: str | None, start: int, stop: int | None, one_by_one: int
) -> None:
    """Sends the numbers of rows by prefix, then lists of samples of the rows, then None.

    Instead of the numbers it sends the fault of a file that cannot be read. Rows before
    `one_by_one` come in lists of one.
    """
    _limit_cpu_time(_SECONDS_TO_OPEN)
    try:
        h5py = import_optional("h5py", url)
        with open_seekable(url) as file, h5py.File(file, "r") as stored:
            sets = _sets(stored)
            if not sets:
                names = ", ".join(list(stored)[:8]) or "nothing"
                pipe.send(
                    Fault(OTHER_ARRAYS, f"no array is named jpg, caption or text, but {names}")
                )
                return
            counts = {
                name: max(len(array) for array in arrays.values()) for name, arrays in sets.items()
            }
            # Each row takes 16 bytes for the place of its content.
            require_plausible([count * 16 for count in counts.values()], file)
            pipe.send(counts)
            numbers = range(counts[prefix])[start:stop] if prefix is not None else range(0)
            while numbers:
                _limit_cpu_time(_SECONDS_TO_READ)
                size = 1 if numbers.start < one_by_one else _ROWS_AT_A_TIME
                pipe.send(list(_samples(sets[prefix or ""], url, prefix or "", numbers[:size])))
                numbers = numbers[size:]
            pipe.send(None)
    except BrokenPipeError:
        pass  # The parent needs no more rows.
    except DAMAGE as error:
        pipe.send(Fault("unreadable file", first_line(error)))


def _limit_cpu_time(seconds: int) -> None:
    """Has the system kill this process once it has computed for so much longer."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    limit = int(used.ru_utime + used.ru_stime) + 1 + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _samples(arrays: Mapping[str, Any], url: str, prefix: str, numbers: range) -> Iterator[Sample]:
    try:
        columns = {name: array[numbers.start : numbers.stop] for name, array in arrays.items()}
    except DAMAGE as error:
        if len(numbers) == 1:
            fault = Fault("unreadable row", first_line(error))
            yield Sample(place=_place(url, prefix, numbers.start), fault=fault)
        else:  # At least one of them is damaged.
            for number in numbers:
                yield from _samples(arrays, url, prefix, range(number, number + 1))
        return
    for index, number in enumerate(numbers):
        row = {
            name: _plain(column[index]) for name, column in columns.items() if index < len(column)
        }
        yield row_sample(row, _place(url, prefix, number), url)


def _place(url: str, prefix: str, number: int) -> str:
    return f"{url}, {prefix}row {number + 1}"


def _plain(value: Any) -> Any:
    """Returns an array of bytes as bytes, and numbers as they are."""
    return bytes(value) if isinstance(value, np.ndarray | np.void) else value


def _sets(stored: Any) -> dict[str, dict[str, Any]]:
    """Returns, by prefix, the arrays that belong together, under the names of `row_sample`."""
    names = [name for name in stored if hasattr(stored[name], "shape")]
    endings = ("jpg", "caption", "text")
    prefixes = sorted(
        {name.removesuffix(end) for name in names for end in endings if name.endswith(end)}
    )
    columns = {**{ending: ending for ending in endings}, "labels": "label"}
    return {
        prefix: {
            column: stored[prefix + name]
            for name, column in columns.items()
            if prefix + name in names
        }
        for prefix in prefixes
    }
