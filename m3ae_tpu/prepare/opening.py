"""Opening of files, local or remote, compressed or not."""

import bz2
import contextlib
import gzip
import importlib
import io
import lzma
import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import fsspec

from m3ae_tpu.errors import UserError

UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError)
"""Errors of opening and reading a file."""
DAMAGE = (*UNREADABLE, LookupError, ValueError, TypeError, RuntimeError, MemoryError, OverflowError)
"""Errors of pyarrow and h5py for damaged files: flipped bytes in the description of the data raise
almost any kind.
"""
LARGEST_FILE = 2**28
"""Bytes of the largest image or caption that is read. A small compressed file could grow to more
than the memory.
"""


def is_remote(url: str) -> bool:
    """Returns whether an address names a store other than the local disk."""
    return re.match(r"[A-Za-z][A-Za-z0-9+.-]*(://|::)", url) is not None


def file_system(url: str) -> tuple[Any, str]:
    """Returns fsspec's file system of a remote address, and the path in it.

    Raises:
        UserError: the store is unknown, or needs a package that is not installed.
    """
    try:
        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        package = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs"}.get(url.partition(":")[0], "")
        need = (
            f"{package}, which is not installed: pip install {package}" if package else str(error)
        )
        raise UserError(f"{url} needs {need}.") from error
    except ValueError as error:
        raise UserError(f"{url} cannot be opened: {error}.") from error


@contextlib.contextmanager
def open_file(url: str) -> Iterator[Any]:  # A binary file. Those of five libraries share no type.
    """Opens a local file, or an object of any store that fsspec knows, for reading.

    A compressed file, recognised by its first bytes, is decompressed while it is read.

    Raises:
        UserError: the store is unknown, or store or compression need a package that is not
            installed.
        OSError: the file cannot be opened.
    """
    with contextlib.ExitStack() as stack:
        if is_remote(url):
            system, path = file_system(url)
            file = stack.enter_context(system.open(path, "rb"))
        else:
            try:
                file = stack.enter_context(open(url, "rb"))
            except ValueError as error:
                raise OSError(f"not a file name: {error}") from error
        start = file.read(6)
        file.seek(0)
        unpacked = file
        if start[:2] == b"\x1f\x8b":
            unpacked = gzip.GzipFile(fileobj=file)
        elif start[:3] == b"BZh":
            unpacked = bz2.BZ2File(file)
        elif start == b"\xfd7zXZ\x00":
            unpacked = lzma.LZMAFile(file)  # noqa: SIM115
        elif start[:4] == b"\x28\xb5\x2f\xfd":
            pyarrow = import_optional("pyarrow", url)
            unpacked = io.BufferedReader(pyarrow.CompressedInputStream(file, "zstd"))
        yield unpacked if unpacked is file else stack.enter_context(unpacked)


@contextlib.contextmanager
def open_seekable(url: str) -> Iterator[Any]:
    """Opens a file for random access. A compressed one is first unpacked into a temporary file."""
    with open_file(url) as file, tempfile.TemporaryFile() as unpacked:
        if not is_compressed(file):
            yield file
            return
        shutil.copyfileobj(file, unpacked)
        unpacked.seek(0)
        yield unpacked


def is_compressed(file: Any) -> bool:
    """Returns whether a file of `open_file` is decompressed while it is read."""
    return isinstance(file, gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile) or (
        isinstance(file, io.BufferedReader) and not isinstance(file.raw, io.FileIO)
    )


def read_whole(url: str) -> bytes:
    """Returns the content of a file.

    Raises:
        OSError: it cannot be read, or is larger than `LARGEST_FILE`.
    """
    with open_file(url) as file:
        content = file.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        raise OSError(f"more than {LARGEST_FILE >> 20} MiB")
    return content


def import_optional(name: str, url: str) -> Any:
    """Imports a package that only some formats need.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(
            f"--input = {url} needs {name.partition('.')[0]}, which is not installed: "
            "pip install 'm3ae-tpu[prepare]'."
        ) from None


def require_plausible(counts: Sequence[int], file: Any) -> None:
    """Refuses numbers of rows that a file of this size cannot hold.

    Each announced row that cannot be read is dropped by itself: a damaged number would give
    millions of them.

    Raises:
        ValueError: the numbers must be damaged.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if any(count < 0 for count in counts) or sum(counts) > size:
        raise ValueError("damaged number of rows")
