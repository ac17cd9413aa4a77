"""Opening of files, local or remote, compressed or not, and recognition of their formats."""

import bz2
import contextlib
import gzip
import importlib
import io
import lzma
import os
import re
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import fsspec

from m3ae_tpu.errors import UserError

type Format = Literal["tar", "parquet", "hdf5", "image", "table", "unknown"]
"""`table` is CSV, TSV, JSON lines or plain text."""

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

_SNIFFED = tarfile.BLOCKSIZE
"""Bytes at the start of a file by which its format is recognised."""
_SEARCHED = 2**20
"""Bytes in which an undamaged header of a tar is searched if the first one is damaged."""
_BINARY = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")


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


def image_format(start: bytes) -> str:
    """Returns the name of the image format that the first 12 bytes announce, or ""."""
    if start[:3] == b"\xff\xd8\xff":
        return "jpeg"
    if start[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "webp"
    if start[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    if start[:4] in (b"II*\x00", b"MM\x00*"):
        return "tiff"
    return "bmp" if start[:2] == b"BM" and start[6:10] == b"\0\0\0\0" else ""


def file_format(url: str) -> Format:
    """Returns the format of a file's content, after decompression."""
    try:
        with open_file(url) as file:
            start = file.read(_SNIFFED)
            if _is_tar_header(start):
                return "tar"
            if (
                _BINARY.search(start)
                and not _announces(start)
                and _holds_tar_header(file.read(_SEARCHED))
            ):
                return "tar"
    except UNREADABLE:
        return "unknown"  # Its reader fails again and gives the reason.
    if start[:4] == b"PAR1":
        return "parquet"
    if start[:8] == b"\x89HDF\r\n\x1a\n":
        return "hdf5"
    if image_format(start):
        return "image"
    # Text in any encoding: rows that are not UTF-8 are dropped one by one.
    return "table" if start and not _BINARY.search(start) else "unknown"


def _announces(start: bytes) -> bool:
    return start[:4] == b"PAR1" or start[:8] == b"\x89HDF\r\n\x1a\n" or bool(image_format(start))


def _is_tar_header(block: bytes) -> bool:
    try:
        return bool(tarfile.TarInfo.frombuf(block, "utf-8", "replace").name)
    except (tarfile.HeaderError, ValueError):
        return block[257:262] == b"ustar"


def _holds_tar_header(blocks: bytes) -> bool:
    """Returns whether one of the blocks is the header of a tar's member."""
    return b"ustar" in blocks and any(
        blocks[start + 257 : start + 262] == b"ustar"
        for start in range(0, len(blocks), tarfile.BLOCKSIZE)
    )
