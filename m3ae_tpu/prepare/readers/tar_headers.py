"""The headers of a tar in every dialect: V7, ustar, GNU, pax, with long names and sparse files."""

import dataclasses
import tarfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

BLOCK = tarfile.BLOCKSIZE
"""Bytes of a block. Headers and contents begin at whole blocks."""
LINKS = (tarfile.LNKTYPE, tarfile.SYMTYPE)
NOT_FILES = (
    *(tarfile.DIRTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE),
    *(b"A", b"D", b"E", b"V"),
)
"""Types of folders and devices, and of access lists, folders in GNU's incremental dumps, attributes
of files and volume labels.
"""
CONTINUED = b"M"
"""Type of a file that began in an earlier volume."""

type Stretches = list[tuple[int, int]]
"""Start and number of the bytes that are stored of a sparse file. The rest is zeros."""

_EMPTY = bytes(BLOCK)
_WINDOW = 2**20
"""Bytes that are read at once in search of headers: seeking over small members is slower."""
_NAME_BYTES = 100
"""Bytes of a header's field for the name."""
_LONGEST_NOTE = 2**20
"""Bytes of a note that are read."""
_EXTENDED = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_NOTES = (*_EXTENDED, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
"""Types of headers that describe other members and are not members themselves."""
_WITHOUT_CONTENT = (*LINKS, *NOT_FILES[:4])
"""Types of which nothing is stored, whatever size they state."""


@dataclasses.dataclass(slots=True, kw_only=True)
class Header:
    """Header of a member, completed by the notes before it."""

    type: bytes
    """One of the letters of the format."""
    name: str
    """Path. Bytes that are not UTF-8 are surrogates, so that other bytes are another name."""
    link: str
    """Path that a link names."""
    has_full_name: bool
    """True if the name fills its field: it may be the start of a longer one."""
    stored: int
    """Bytes of the content in the archive."""
    size: int
    """Bytes of the content, with the zeros of a sparse file."""
    offset: int = 0
    """Start of the content in the archive."""
    part: int = 0
    """Number of the archive among those that were appended to each other."""
    stretches: Stretches | None = None
    """Content of a sparse file."""
    has_unknown_map: bool = False
    """True for a sparse file whose stretches are not known."""


def read_headers(file: Any) -> Iterator[Header | None]:
    """Yields the headers of all members, None for each stretch of damage between them.

    `tarfile` is not used for it: it skips damaged headers silently, ends at one behind a long name,
    and takes the times in headers of GNU's incremental dumps for folders.
    """
    read = _window(file)
    notes: dict[str, bytes] = {}
    position, part, num_empty, is_damaged = 0, 0, 0, False
    while len(block := read(position)) == BLOCK:
        position += BLOCK
        if block == _EMPTY:
            num_empty += 1
            continue
        header = _parse(block)
        if header is None:
            if not is_damaged:
                yield None
            notes, num_empty, is_damaged = {}, 0, True
            continue
        part += num_empty > 1 and not is_damaged
        num_empty = 0
        if header.type in _NOTES:
            file.seek(position)
            notes |= _read_notes(header.type, file.read(min(header.stored, _LONGEST_NOTE)))
            position += padded(header.stored)
            is_damaged = False
            continue
        _complete(header, notes)
        header.part, header.offset = part, position
        if header.type == tarfile.GNUTYPE_SPARSE:
            _add_map_of_gnu(header, block, read)
        elif any(name.startswith("GNU.sparse.") for name in notes):
            _add_map_of_pax(header, notes, file)
        if header.type not in _WITHOUT_CONTENT:
            position = header.offset + padded(header.stored)
        # Behind a damaged header, a name without room left may be the start of the one in it.
        if not (is_damaged and header.has_full_name and "path" not in notes):
            yield header
        notes, is_damaged = {}, False


def padded(size: int) -> int:
    """Returns the bytes of the blocks that hold `size` bytes."""
    return -(-size // BLOCK) * BLOCK


def has_end(file: Any, size: int) -> bool:
    """Returns whether an archive of `size` bytes ends in two empty blocks."""
    file.seek(max(0, size - 2 * BLOCK))
    return file.read() == 2 * _EMPTY


def _window(file: Any) -> Callable[[int], bytes]:
    """Returns a function that reads the block at an offset, shorter at the end of the file."""
    window, start = b"", 0

    def read(offset: int) -> bytes:
        nonlocal window, start
        if not start <= offset <= start + len(window) - BLOCK:
            file.seek(offset)
            window, start = file.read(_WINDOW), offset
        return window[offset - start : offset - start + BLOCK]

    return read


def _parse(block: bytes) -> Header | None:
    """Returns a header as it stands, None if it is damaged or not a header."""
    type = block[156:157]
    try:
        checksum, stored = _number(block[148:156]), _number(block[124:136])
        size = _number(block[483:495]) if type == tarfile.GNUTYPE_SPARSE else stored
    except ValueError:
        return None
    # The field of the checksum counts as spaces.
    unsigned = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    if checksum != unsigned and checksum != unsigned - 256 * sum(byte > 127 for byte in block):
        return None  # Some old programs add up signed bytes.
    name = _text(block[:_NAME_BYTES])
    if block[257:263] == b"ustar\0" and block[345]:  # GNU's headers have times in these bytes.
        name = f"{_text(block[345:500])}/{name}"
    if type == tarfile.AREGTYPE and name.endswith("/"):
        type = tarfile.DIRTYPE  # As V7 marks them.
    return Header(
        type=type,
        name=name,
        link=_text(block[157:257]),
        has_full_name=bool(block[_NAME_BYTES - 1]),
        stored=stored,
        size=size,
    )


def _number(field: bytes) -> int:
    """Returns a number in octal digits, or in bytes behind a mark, as large ones are written.

    Raises:
        ValueError: it is neither.
    """
    if field[0] == 0x80:
        return int.from_bytes(field[1:])
    digits = field.partition(b"\0")[0].strip() or b"0"
    if not digits.isdigit():
        raise ValueError(f"{field!r} is not a number")
    return int(digits, 8)


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _read_notes(type: bytes, content: bytes) -> dict[str, bytes]:
    """Returns what a header notes about the next member, under pax's names."""
    if type == tarfile.GNUTYPE_LONGNAME:
        return {"path": content}
    if type == tarfile.GNUTYPE_LONGLINK:
        return {"linkpath": content}
    notes: dict[str, bytes] = {}
    start = 0
    # Records of `LENGTH NAME=VALUE` and a line break. Global ones name no file.
    while type in _EXTENDED:
        length = content[start : start + 20].partition(b" ")[0]
        if not length.isdigit() or not len(length) < int(length) <= len(content) - start:
            break
        end = start + int(length)
        name, _, value = content[start + len(length) + 1 : end - 1].partition(b"=")
        if name in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):  # Once for each stretch.
            name, value = b"GNU.sparse.map", notes.get("GNU.sparse.map", b"") + value + b","
        notes[name.decode("utf-8", "replace")] = value
        start = end
    return notes


def _complete(header: Header, notes: Mapping[str, bytes]) -> None:
    """Fills in the name, link and size that stand before a header."""
    if path := notes.get("GNU.sparse.name") or notes.get("path"):
        header.name = _text(path)
    if path := notes.get("linkpath"):
        header.link = _text(path)
    if size := _as_size(notes.get("size")):
        header.stored = size
        header.size = header.size if header.type == tarfile.GNUTYPE_SPARSE else size
    header.has_unknown_map = "SCHILY.realsize" in notes  # A sparse file as star writes it.


def _as_size(number: bytes | None) -> int:
    return int(number) if number and number.isdigit() and len(number) < 20 else 0


def _add_map_of_gnu(header: Header, block: bytes, read: Callable[[int], bytes]) -> None:
    """Adds the stretches of a sparse file in GNU's format: in its header and the blocks behind."""
    fields, goes_on = [block[386:482]], block[482]
    while goes_on and len(block := read(header.offset)) == BLOCK:
        fields.append(block[:504])
        goes_on = block[504]
        header.offset += BLOCK
    try:
        numbers = [
            _number(field[start : start + 12])
            for field in fields
            for start in range(0, len(field), 12)
        ]
    except ValueError:
        numbers = []
    _set_stretches(header, numbers)


def _add_map_of_pax(header: Header, notes: Mapping[str, bytes], file: Any) -> None:
    """Adds the stretches of a sparse file in pax's format: in the notes, or before the content."""
    header.size = _as_size(notes.get("GNU.sparse.realsize") or notes.get("GNU.sparse.size"))
    if notes.get("GNU.sparse.major", b"0") == b"0":
        _set_stretches(header, _numbers(notes.get("GNU.sparse.map", b"").strip(b",").split(b",")))
        return
    file.seek(header.offset)
    lines = file.read(min(header.stored, _LONGEST_NOTE)).split(b"\n")
    count = _as_size(lines[0])
    lines = lines[: 1 + 2 * count]
    num_bytes = padded(sum(len(line) + 1 for line in lines))
    header.offset += num_bytes
    header.stored -= num_bytes
    _set_stretches(header, _numbers(lines[1:]) if len(lines) == 1 + 2 * count else [])


def _numbers(texts: list[bytes]) -> list[int]:
    return [int(text) if text.isdigit() and len(text) < 20 else -1 for text in texts]


def _set_stretches(header: Header, numbers: list[int]) -> None:
    stretches = list(zip(numbers[::2], numbers[1::2], strict=False))
    header.stretches = stretches
    header.has_unknown_map = (
        len(numbers) % 2 == 1
        or min(numbers, default=0) < 0
        or sum(count for _, count in stretches) != header.stored
        or any(start + count > header.size for start, count in stretches)
    )
