"""The format of a file, recognised by its content."""

import codecs
import re
import tarfile
from typing import Literal

from m3ae_tpu.data.image_formats import image_format
from m3ae_tpu.prepare.opening import UNREADABLE, open_file
from m3ae_tpu.prepare.unread_formats import LOOKED_AT, UnreadFormat, unread_format

type Format = Literal["tar", "parquet", "hdf5", "image", "table", "unread", "unknown"]
"""`table` is CSV, TSV, JSON lines or plain text; `unread` is a known format that is not read."""

_SEARCHED = 2**20
"""Bytes in which an undamaged header of a tar is searched if the first one is damaged."""
_BINARY = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]")


def file_format(url: str) -> Format:
    """Returns the format of a file's content, after decompression."""
    try:
        with open_file(url) as file:
            start = file.read(LOOKED_AT)
            if _is_tar_header(start):
                return "tar"
            known = _known_format(start)
            if known:
                return known
            if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                return "table"
            if _BINARY.search(start):
                return "tar" if _holds_tar_header(file.read(_SEARCHED)) else "unknown"
    except UNREADABLE:
        return "unknown"  # Its reader fails again and gives the reason.
    # Text in any encoding: rows that are not UTF-8 are dropped one by one.
    return "table" if start else "unknown"


def unread_file(url: str) -> UnreadFormat:
    """Returns the reason why a file of the format `unread` or `unknown` is not read."""
    try:
        with open_file(url) as file:
            start = file.read(LOOKED_AT)
    except UNREADABLE as error:
        return UnreadFormat("unreadable file", str(error).partition("\n")[0][:100])
    found = f"starts with {start[:16]!r}" if start else "empty"
    return unread_format(start) or UnreadFormat("unknown file format", found)


def _known_format(start: bytes) -> Format | None:
    if start[:4] == b"PAR1":
        return "parquet"
    if start[:8] == b"\x89HDF\r\n\x1a\n":
        return "hdf5"
    if image_format(start):
        return "image"
    return "unread" if unread_format(start) else None


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
