"""What readers yield, and how files are opened and told apart: by their content, never by their
name.
"""

import bz2
import contextlib
import dataclasses
import gzip
import importlib
import io
import lzma
import math
import re
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import fsspec

from m3ae_tpu.errors import UserError

type Format = Literal["tar", "parquet", "hdf5", "image", "table", "unknown", "passed over"]
"""`table` is CSV, TSV, JSON lines or plain text; what is passed over lies beside what is read."""

IMAGE_NAMES = ("image", "jpg", "jpeg", "png", "webp", "img", "image_bytes")
"""Columns and file endings that hold an encoded image, the first one found counts."""
CAPTION_NAMES = ("captions", "caption", "text", "txt")
"""The same for texts; a list holds several wordings."""
LABEL_NAMES = ("label_name", "label", "class", "cls")
FILE_NAMES = ("file", "file_name", "filename", "image", "path", "image_path")
"""Columns of a table that name an image file beside it."""
URL_NAMES = ("url", "image_url")
"""All of these are compared in lower case."""

UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError)
"""What opening and reading a file may raise."""
LARGEST_FILE = 2**28
"""Bytes of the largest image or caption that is read: what a small compressed file may grow to."""

_SNIFFED = tarfile.BLOCKSIZE
"""Bytes that decide."""
_SEARCHED = 2**20
"""Bytes in which a tar with a damaged start is looked for."""
_BINARY = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """One example of a collection, as it was found."""

    place: str
    """File and, within it, member or row: for messages."""
    image: bytes | None = None
    """Encoded image, None where there is none."""
    captions: tuple[str | bytes | None, ...] = ()
    """Texts; bytes are not decoded yet. None stands for what is no text."""
    label: str = ""
    """Class, or nothing."""
    fault: str = ""
    """Why it could not be read; the rest is then without meaning."""


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
        what = (
            f"{package}, which is not installed: pip install {package}" if package else str(error)
        )
        raise UserError(f"{url} needs {what}.") from error
    except ValueError as error:
        raise UserError(f"{url} cannot be opened: {error}.") from error


@contextlib.contextmanager
def open_file(url: str) -> Iterator[Any]:  # A binary file; those of five libraries share no type.
    """Opens a local file or an object of any store that fsspec knows, and decompresses it by its
    first bytes.

    Raises:
        UserError: the store is unknown, or store or compression need a package that is not
        installed. OSError: the file cannot be opened.
    """
    with contextlib.ExitStack() as stack:
        if is_remote(url):
            system, path = file_system(url)
            file = stack.enter_context(system.open(path, "rb"))
        else:
            try:
                file = stack.enter_context(open(url, "rb"))
            except ValueError as error:
                raise OSError(f"no file name: {error}") from error
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
            unpacked = io.BufferedReader(module("pyarrow", url).CompressedInputStream(file, "zstd"))
        yield unpacked if unpacked is file else stack.enter_context(unpacked)


@contextlib.contextmanager
def open_seekable(url: str) -> Iterator[Any]:
    """Opens a file for reading here and there: a compressed one is unpacked into a temporary file
    first.
    """
    with open_file(url) as file, tempfile.TemporaryFile() as unpacked:
        if not is_compressed(file):
            yield file
            return
        shutil.copyfileobj(file, unpacked)
        unpacked.seek(0)
        yield unpacked


def is_compressed(file: Any) -> bool:
    """Returns whether a file of `open_file` is unpacked while it is read."""
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
    """Returns what a file holds, looking into a compressed one; `unknown` for what no reader knows."""
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
        return "unknown"  # Whoever reads it will say why.
    if start[:4] == b"PAR1":
        return "parquet"
    if start[:8] == b"\x89HDF\r\n\x1a\n":
        return "hdf5"
    if image_format(start):
        return "image"
    # Text in whatever encoding: what is not UTF-8 in it is dropped row by row.
    return "table" if start and not _BINARY.search(start) else "unknown"


def _announces(start: bytes) -> bool:
    return start[:4] == b"PAR1" or start[:8] == b"\x89HDF\r\n\x1a\n" or bool(image_format(start))


def _is_tar_header(block: bytes) -> bool:
    try:
        return bool(tarfile.TarInfo.frombuf(block, "utf-8", "replace").name)
    except (tarfile.HeaderError, ValueError):
        return block[257:262] == b"ustar"


def _holds_tar_header(blocks: bytes) -> bool:
    """Returns whether one of the blocks is a tar's header: its first may be damaged."""
    return b"ustar" in blocks and any(
        blocks[start + 257 : start + 262] == b"ustar"
        for start in range(0, len(blocks), tarfile.BLOCKSIZE)
    )


def module(name: str, url: str) -> Any:
    """Imports what one format alone needs.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(
            f"--input = {url} needs {name}, which is not installed: pip install 'm3ae-tpu[prepare]'."
        ) from None


def first_of(row: Mapping[str, Any], names: Iterable[str]) -> Any:
    """Returns the value of the first name that has one: not None, and, if another name has more,
    not empty.
    """
    values = [row[name] for name in names if row.get(name) is not None]
    return next((value for value in values if not _is_empty(value)), values[0] if values else None)


def _is_empty(value: Any) -> bool:
    if isinstance(value, str | bytes):
        return not value.strip()
    return isinstance(value, list | tuple) and not value


def is_address(name: Any) -> bool:
    """Returns whether what should name a file names a page."""
    return isinstance(name, str) and name.startswith(("http://", "https://"))


def as_captions(value: Any) -> tuple[bytes | None, ...]:
    """Returns one text or a list of them, numbers too, as bytes; nothing as an empty tuple, what is
    no text as None.
    """
    texts = value if isinstance(value, list | tuple) else [value]
    return tuple(
        None if isinstance(text, Mapping | list | tuple) else _as_bytes(text)
        for text in texts
        if not _is_nothing(text)
    )


def as_label(value: Any) -> str:
    """Returns a class, of whatever type, as text."""
    return "" if _is_nothing(value) else _as_bytes(value).decode("utf-8", "replace").strip()


def _is_nothing(value: Any) -> bool:
    # pandas writes what is missing as a number that is none.
    return value is None or (isinstance(value, float) and math.isnan(value))


def _as_bytes(text: Any) -> bytes:
    """Returns the bytes that a file held for a text; damaged ones stay damaged, for
    `clean_captions` to find.
    """
    return text if isinstance(text, bytes) else str(text).encode("utf-8", "surrogatepass")


def first_line(error: BaseException) -> str:
    """Returns the start of an error's message, or its type."""
    return (str(error).partition("\n")[0] or type(error).__name__)[:100]
