"""The files in a tar: a list of all of them, with links followed, and the content of each."""

import contextlib
import dataclasses
import os
import posixpath
import tarfile
import tempfile
from collections.abc import Iterator
from typing import Any

from m3ae_tpu.errors import UserError
from m3ae_tpu.prepare.opening import (
    LARGEST_FILE,
    UNREADABLE,
    is_compressed,
    is_remote,
    open_file,
)
from m3ae_tpu.prepare.readers.tar_headers import (
    CONTINUED,
    LINKS,
    NOT_FILES,
    Header,
    Stretches,
    has_end,
    read_headers,
)
from m3ae_tpu.prepare.samples import Fault, first_line

CUT_SHORT = "archive cut short"
"""Reason of all that an early end of the archive costs."""

_LONGEST_CHAIN = 40
"""Links that follow one another, as in Linux."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A file of an archive."""

    name: str
    """Path. Bytes that are not UTF-8 are surrogates, so that other bytes are another name."""
    position: int
    """Number in the archive. A damaged header has a number too."""
    part: int
    """Number of the archive among those that were appended to each other."""
    offset: int
    """Start of the content."""
    size: int
    """Bytes of the content."""
    stretches: Stretches | None
    """Stored bytes of a sparse file, None for others."""
    fault: Fault | None
    """Reason why it cannot be read."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Listing:
    """All that the headers of an archive give."""

    members: list[Member]
    """Files in the order of the archive."""
    damaged: list[int]
    """Positions of damaged headers. Several that follow one another count as one."""
    cut: Fault | None
    """Fault of an archive that ends early, unless its last member has it."""


@contextlib.contextmanager
def open_archive(url: str) -> Iterator[tuple[Any, str]]:
    """Opens an archive for reading at any position.

    A compressed or remote one is first copied into a temporary file, as far as it can be read.
    Yields the file, and the error that ended the copy early, or "".

    Raises:
        UserError: the temporary folder has no room for the copy.
    """
    with open_file(url) as source:
        if not is_remote(url) and not is_compressed(source):
            yield source, ""
            return
        with tempfile.TemporaryFile() as copy:
            yield copy, _copy(source, copy, url)


def _copy(source: Any, copy: Any, url: str) -> str:
    """Copies a file, and returns the error that ended it early, or ""."""
    # A decompressor that is asked for less than it has gives all that there is before damage.
    read = source.read1 if is_compressed(source) else source.read
    while True:
        try:
            chunk = read(2**16)
        except UNREADABLE as error:
            return first_line(error)
        if not chunk:
            return ""
        try:
            copy.write(chunk)
        except OSError as error:
            raise UserError(
                f"--input = {url} does not fit into {tempfile.gettempdir()}, where it is unpacked "
                f"({error.strerror}). Name a folder with more room: TMPDIR=FOLDER."
            ) from None


def list_members(file: Any, error: str) -> Listing:
    """Lists the files of an archive that are not hidden. Links stand for what they name.

    Args:
        file: The archive, open for reading at any position.
        error: Error that ended it early, or "".
    """
    members: list[Member] = []
    links: dict[int, Header] = {}
    damaged: list[int] = []
    size, position, is_cut = file.seek(0, os.SEEK_END), 0, False
    try:
        for header in read_headers(file):
            if header is None:
                damaged.append(position)
                position += 1
                continue
            if header.type in NOT_FILES:
                continue
            cut = None
            if header.type in LINKS:
                links[len(members)] = header
            elif header.offset + header.stored > size:
                is_cut = True
                missing = f"{header.offset + header.stored - size:,} bytes are missing"
                cut = Fault(CUT_SHORT, f"{show_name(header.name)}: {error or missing}")
            members.append(_member(header, position, cut))
            position += not is_hidden(header.name)
    except UNREADABLE as unreadable:
        error = first_line(unreadable)
    _follow_links(members, links)
    is_whole = is_cut or (not error and has_end(file, size))
    return Listing(
        members=[member for member in members if not is_hidden(member.name)],
        damaged=damaged,
        cut=None if is_whole else Fault(CUT_SHORT, error or "its end mark is missing"),
    )


def _member(header: Header, position: int, cut: Fault | None) -> Member:
    name, shown, fault = header.name, show_name(header.name), cut
    if name.startswith("/") or ".." in name.split("/"):
        fault = fault or Fault("unsafe path", shown)
    elif "./" in name or "//" in name:
        name = posixpath.normpath(name)
    if header.type == CONTINUED:
        fault = fault or Fault("file of a multi-volume archive", f"{shown}, without its start")
    if header.has_unknown_map:
        fault = fault or Fault("sparse file that cannot be unpacked", shown)
    if header.size > LARGEST_FILE:
        fault = fault or Fault("file too large", f"{shown}, {header.size:,} bytes")
    return Member(
        name=name,
        position=position,
        part=header.part,
        offset=header.offset,
        size=header.size,
        stretches=header.stretches,
        fault=fault,
    )


def show_name(name: str) -> str:
    """Returns a member's name as text that fits any file."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def is_hidden(name: str) -> bool:
    """Returns whether a member is hidden, or what macOS keeps beside a file."""
    return name.rpartition("/")[2].startswith(".") or name.startswith("__MACOSX/")


def _follow_links(members: list[Member], links: dict[int, Header]) -> None:
    """Replaces links to files of the archive by these files, and gives the others a fault.

    Args:
        members: Files and links in the order of the archive.
        links: Header of each link, by its index in `members`.
    """
    if not links:
        return
    found: dict[tuple[int, str], int] = {}
    for index, member in enumerate(members):
        if index in links and links[index].type == tarfile.LNKTYPE:
            # A hard link names a file before it, from the root of the archive.
            target = found.get((member.part, posixpath.normpath(links[index].link)))
            if target in links:
                links[index] = links[target]
            elif target is not None:
                members[index] = _linked(member, members[target])
                del links[index]
        found[member.part, member.name] = index
    for index, header in links.items():
        target: int | None = index
        for _ in range(_LONGEST_CHAIN):
            if target is None or target not in links:
                break
            folder = posixpath.dirname(members[target].name)
            path = posixpath.normpath(posixpath.join(folder, links[target].link))
            target = found.get((members[index].part, path))
        if target is not None and target not in links:
            members[index] = _linked(members[index], members[target])
        else:
            detail = f"{show_name(members[index].name)} to {show_name(header.link)}"
            fault = Fault("archive member is a link", f"{detail}, which is not in the archive")
            members[index] = dataclasses.replace(
                members[index], fault=members[index].fault or fault
            )


def _linked(link: Member, target: Member) -> Member:
    fault = link.fault or target.fault
    return dataclasses.replace(target, name=link.name, position=link.position, fault=fault)


def read_member(file: Any, member: Member) -> bytes | Fault:
    """Returns the content of a member, or the reason why it cannot be read."""
    if member.fault:
        return member.fault
    try:
        file.seek(member.offset)
        if member.stretches is None:
            content = file.read(member.size)
        else:
            content = _unpack(file, member.size, member.stretches)
    except UNREADABLE as error:
        return Fault("unreadable archive member", f"{show_name(member.name)}: {first_line(error)}")
    if len(content) < member.size:
        return Fault(CUT_SHORT, show_name(member.name))  # It shrank while it was read.
    return content


def _unpack(file: Any, size: int, stretches: Stretches) -> bytes:
    """Returns a sparse file with its zeros. The stored stretches come next in the archive."""
    content = bytearray(size)
    for start, count in stretches:
        content[start : start + count] = file.read(count)
    return bytes(content)
