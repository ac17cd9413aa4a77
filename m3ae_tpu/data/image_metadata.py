"""Metadata of encoded images: the EXIF orientation, and images without what changes no pixel.

A large text, a damaged profile or a private chunk must not make damage of sound pixels.
"""

import re
import zlib

from PIL import Image

from m3ae_tpu.data.image_errors import damage_as_value_error

_ORIENTATION = 0x0112
_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
_WEBP_CHUNKS = (b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF")
_GREY, _RGB = 0, 2
"""PNG's types of colour without alpha."""
_SCAN, _APP0, _APP1, _ADOBE = 0xDA, 0xE0, 0xE1, 0xEE
"""JPEG's markers of the first scan, of JFIF, of EXIF, and of Adobe's colours."""
_AVIF_EXIF = re.compile(rb"(infe.{8}(?:.{2})?)Exif", re.DOTALL)


def exif_orientation(exif: bytes) -> int:
    """Returns the orientation in a block of EXIF, 1 to 8; without a valid one 1, upright."""
    if not exif:
        return 1
    parsed = Image.Exif()
    try:
        with damage_as_value_error():
            parsed.load(exif)
            value = parsed.get(_ORIENTATION)
    except ValueError:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def jpeg_exif(data: bytes) -> bytes:
    """Returns the block of EXIF in a JPEG, or nothing."""
    for marker, start, end in _jpeg_segments(data):
        if marker == _APP1 and data[start + 4 : start + 10] == b"Exif\0\0":
            return data[start + 4 : end]
    return b""


def without_jpeg_metadata(data: bytes) -> bytes:
    """Returns a JPEG without segments that change no pixel and bytes between them, with an end."""
    kept, scan = [data[:2]], len(data)
    for marker, start, end in _jpeg_segments(data):
        if marker == _SCAN:
            scan = start
        elif marker in (_APP0, _ADOBE) or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            kept.append(data[start:end])
    return b"".join([*kept, data[scan:], b"\xff\xd9"])


def _jpeg_segments(data: bytes) -> list[tuple[int, int, int]]:
    """Returns marker, start and end of each segment up to the first scan."""
    segments, start = [], 2
    while (start := data.find(b"\xff", start)) >= 0 and start + 4 <= len(data):
        marker = data[start + 1]
        if marker in (0x00, 0x01, 0xFF) or 0xD0 <= marker <= 0xD9:
            start += 1  # A byte that fills, or a marker without content.
            continue
        end = start + 2 + max(2, int.from_bytes(data[start + 2 : start + 4]))
        segments.append((marker, start, end))
        if marker == _SCAN:
            break
        start = end
    return segments


def without_png_metadata(data: bytes) -> bytes:
    """Returns a PNG without texts, profiles and unknown chunks, but with its EXIF.

    Pillow reads the transparent grey of 1 to 4 bits and the transparent colour of 16 bits as if
    they were of 8 bits. They are scaled as it scales the pixels.
    """
    kept, start = [data[:8]], 8
    while start + 8 <= len(data):
        length, kind = int.from_bytes(data[start : start + 4]), data[start + 4 : start + 8]
        chunk = data[start : start + 12 + length]
        if kind == b"tRNS" and _is_sound(chunk):
            chunk = _scaled_transparency(chunk, depth=data[24], color=data[25])
        if kind in _PIXEL_CHUNKS or (kind == b"eXIf" and _is_sound(chunk)):
            kept.append(chunk)
        start += len(chunk)
    return b"".join(kept)


def _is_sound(chunk: bytes) -> bool:
    """Returns whether a chunk of a PNG has its checksum."""
    return zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:])


def _scaled_transparency(chunk: bytes, *, depth: int, color: int) -> bytes:
    values = [int.from_bytes(chunk[at : at + 2]) for at in range(8, len(chunk) - 4, 2)]
    if color == _GREY and depth in (2, 4):
        values = [value * 255 // (2**depth - 1) for value in values]
    elif color == _RGB and depth == 16:
        values = [value >> 8 for value in values]
    else:
        return chunk
    body = b"tRNS" + b"".join(value.to_bytes(2) for value in values)
    return chunk[:4] + body + zlib.crc32(body).to_bytes(4)


def without_webp_metadata(data: bytes) -> bytes:
    """Returns a WebP without its profile, XMP and unknown chunks, and without a cut EXIF."""
    kept, start = [b"WEBP"], 12
    while start + 8 <= len(data):
        length = int.from_bytes(data[start + 4 : start + 8], "little")
        kind, end = data[start : start + 4], start + 8 + length + length % 2
        if kind in _WEBP_CHUNKS or (kind == b"EXIF" and end <= len(data)):
            kept.append(data[start:end])
        start = end
    content = b"".join(kept)
    return b"RIFF" + len(content).to_bytes(4, "little") + content


def without_avif_metadata(data: bytes) -> bytes:
    """Returns an AVIF without its EXIF, whose orientation does not count beside the format's own.

    The entry gets a type that no decoder knows: all offsets stay.
    """
    return _AVIF_EXIF.sub(rb"\1none", data)
