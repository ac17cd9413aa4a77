"""Image formats that are read, recognised by their first bytes."""

import re
import struct
from typing import Literal

_READ = (
    ("JPEG", rb"\xff\xd8\xff"),
    ("PNG", rb"\x89PNG\r\n\x1a\n"),
    ("WEBP", rb"RIFF.{4}WEBP"),
    ("GIF", rb"GIF8[79]a"),
    ("BMP", rb"BM.{4}\0{4}"),
    # The last is BigTIFF.
    ("TIFF", rb"II\*\0|MM\0\*|II\+\0\x08\0|MM\0\+\0\x08"),
    # A container of several formats says in its list of brands that it holds AVIF.
    ("AVIF", rb".{4}ftyp(?:avi[fs]|m[is]f1(?:.{4}){1,16}?avi[fs])"),
    ("JPEG2000", rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51"),
    # A text may begin with "P3 10 ...": the whole header must be there, then only numbers.
    ("PPM", rb"P[14](?:\s|#[^\n]*\n)+\d+(?:\s|#[^\n]*\n)+\d+\s"),
    ("PPM", rb"P[2356](?:\s|#[^\n]*\n)+\d+(?:\s|#[^\n]*\n)+\d+(?:\s|#[^\n]*\n)+\d{1,5}\s"),
    ("ICO", rb"\0\0\x01\0[\x01-\x40]\0.{3}\0"),
    ("QOI", rb"qoif.{8}[\3\4][\0\1]"),
)
"""Pillow's name of each format, and what its files begin with. Left out, although Pillow knows
them: formats that need other programs (EPS, WMF), and those whose pixels are not what their owner
sees (PSD without its layers) or that nobody can recognise with certainty (TGA).
"""
_START = re.compile(b"|".join(rb"(%s)" % start for _, start in _READ), re.DOTALL)
_PLAIN_NUMBERS = re.compile(rb"P[123](?:[\d\s]|#[^\n]*(?:\n|$))*\Z")
_SUBFILE_TYPE, _PHOTOMETRIC, _SUB_DIRECTORIES, _DNG_VERSION = 254, 262, 330, 50706
_RAW_COLORS = (32803, 34892)
"""Tags of a TIFF's directory, and the photometric interpretations of raw files."""
_LONG = 4
"""Type of a number of 32 bits in a TIFF."""
_MOST_ENTRIES = 200
"""Entries of a directory that are looked at."""


def image_format(data: bytes) -> str:
    """Returns Pillow's name of the format of an image, or "" if it is not one that is read.

    Args:
        data: The image, or its first 512 bytes or more.
    """
    found = _START.match(data)
    if found is None:
        return ""
    name = _READ[(found.lastindex or 1) - 1][0]
    if name == "TIFF" and is_camera_raw(data):
        return ""
    if name == "PPM" and data[1] in b"123" and not _PLAIN_NUMBERS.match(data[:512]):
        return ""
    return name


def is_camera_raw(data: bytes) -> bool:
    """Returns whether a TIFF is a camera's raw file, whose first image is a preview.

    Such a file says so in its first directory: a DNG's version, colours behind a filter, or a
    preview above directories with the rest (NEF, ARW).
    """
    if data[8:10] == b"CR":
        return data[:4] == b"II*\0"
    if data[:4] not in (b"II*\0", b"MM\0*"):
        return False
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"
    start = int.from_bytes(data[4:8], order) + 2
    count = int.from_bytes(data[start - 2 : start], order)
    entries = data[start : start + 12 * min(count, _MOST_ENTRIES)]
    layout = "<HHIHH" if order == "little" else ">HHIHH"
    values = {
        # A short number lies in the first two bytes, a long one that is small in the lower two.
        tag: second if kind == _LONG and order == "big" else first
        for tag, kind, _, first, second in struct.iter_unpack(
            layout, entries[: len(entries) // 12 * 12]
        )
    }
    is_preview = values.get(_SUBFILE_TYPE, 0) & 1 and _SUB_DIRECTORIES in values
    return bool(is_preview) or _DNG_VERSION in values or values.get(_PHOTOMETRIC) in _RAW_COLORS
