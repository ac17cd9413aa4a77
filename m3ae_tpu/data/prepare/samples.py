"""What readers yield, and how files are opened and told apart: by their content, never by their name."""

import bz2
import dataclasses
import gzip
import lzma
from typing import Any, Literal

import fsspec

from m3ae_tpu.config import ConfigError

type Format = Literal["tar", "parquet", "hdf5", "image", "table"]
"""`table` is CSV, TSV, JSON lines or plain text."""

_SNIFFED = 512
"""Bytes that decide; a tar names itself at byte 257."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """One example of a collection, as it was found."""

    place: str
    """File and, within it, member or row: for messages."""
    image: bytes | None = None
    """Encoded image, None where there is none."""
    captions: tuple[str | bytes, ...] = ()
    """Texts; bytes are not decoded yet."""
    label: str = ""
    """Class, or nothing."""
    fault: str = ""
    """Why it could not be read; the rest is then without meaning."""


def open_file(url: str) -> Any:  # A binary file; those of five libraries share no type.
    """Opens a local file or an object of any store that fsspec knows, and decompresses it by its first bytes.

    Raises:
        ConfigError: the store needs a package that is not installed.
        OSError: the file cannot be opened.
    """
    try:
        system, path = fsspec.core.url_to_fs(url)
        file = system.open(path, "rb")
    except ImportError as error:
        raise ConfigError(f"--input = {url} needs another package: {error}.") from error
    start = file.read(6)
    file.seek(0)
    if start[:2] == b"\x1f\x8b":
        return gzip.GzipFile(fileobj=file)
    if start[:3] == b"BZh":
        return bz2.BZ2File(file)
    if start == b"\xfd7zXZ\x00":
        return lzma.LZMAFile(file)
    if start[:4] == b"\x28\xb5\x2f\xfd":
        import pyarrow

        return pyarrow.CompressedInputStream(file, "zstd")
    return file


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


def file_format(url: str) -> Format | None:
    """Returns what a file holds, looking into a compressed one; None for what no reader knows.

    Raises:
        OSError: the file cannot be read.
    """
    with open_file(url) as file:
        try:
            start = file.read(_SNIFFED)
        except (EOFError, OSError, lzma.LZMAError):
            return None
    if start[257:262] == b"ustar":
        return "tar"
    if start[:4] == b"PAR1":
        return "parquet"
    if start[:8] == b"\x89HDF\r\n\x1a\n":
        return "hdf5"
    if image_format(start):
        return "image"
    if not start or b"\0" in start:
        return None
    try:
        start.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # A character may be cut in two at the end of what was looked at.
        if len(start) < _SNIFFED or error.start < len(start) - 3:
            return None
    return "table"
