"""Webdataset tars: neighbouring members of one name are a sample. Damage is skipped."""

import dataclasses
import itertools
import json
import os
import tarfile
from collections.abc import Iterator, Mapping
from typing import Any

from m3ae_tpu.data.image_formats import image_format
from m3ae_tpu.prepare.opening import (
    LARGEST_FILE,
    UNREADABLE,
    is_compressed,
    open_file,
)
from m3ae_tpu.prepare.samples import (
    CAPTION_NAMES,
    IMAGE_NAMES,
    LABEL_NAMES,
    Fault,
    Sample,
    first_line,
    first_of,
    row_sample,
)

_NOTES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE)
"""Types of headers that describe the next member and are not members themselves."""
_KNOWN = {*IMAGE_NAMES, *CAPTION_NAMES, *LABEL_NAMES, "json"}
"""Endings that give a member its role."""
_CUT = "archive cut short"
_DAMAGED = Fault("damaged archive header")


@dataclasses.dataclass(frozen=True)
class Member:
    """A file of an archive, or the reason why it cannot be read."""

    name: str
    """Empty if the header is damaged."""
    content: bytes = b""
    fault: Fault | None = None


def read_tar(url: str) -> Iterator[Sample]:
    """Yields the samples of a webdataset tar: neighbours whose names are equal up to the first dot.

    Reading goes on behind a damaged header. The member that it hides is missing in its sample; if
    no sample near it lacks a member, the loss is a sample of its own. An archive that ends early
    gives a sample with that reason. Members outside of the archive's folder are refused.
    """
    usual: set[str] = set()  # Endings of the fullest sample so far.
    hidden = False  # Whether there was a damaged header that no incomplete sample explains yet.
    groups = itertools.chain(_groups(_members(url)), [("", [])])
    for (key, group), (next_key, following) in itertools.pairwise(groups):
        endings = _by_ending(key, group).keys()
        usual = max(usual, set(endings), set(_by_ending(next_key, following)), key=len)
        if len(endings) < len(usual):
            hidden = False  # The hidden member is the one that this sample lacks.
        else:
            if hidden:
                yield Sample(place=f"{url}, behind a damaged header", fault=_DAMAGED)
            hidden = any(not member.name for member in group)
        if key:
            yield _tar_sample(f"{url}, {key}", key, group)
    if hidden:
        yield Sample(place=f"{url}, behind a damaged header", fault=_DAMAGED)


def _tar_sample(place: str, key: str, group: list[Member]) -> Sample:
    fault = next((member.fault for member in group if member.name and member.fault), None)
    if fault:
        return Sample(place=place, fault=fault)
    contents = _by_ending(key, group)
    try:
        notes = json.loads(contents.get("json", b"{}"))
    except (ValueError, RecursionError):
        notes = {}  # The caption may stand in a member of its own.
    notes = notes if isinstance(notes, dict) else {}
    captions = {
        name: first_of(of, CAPTION_NAMES) for name, of in (("own", contents), ("json", notes))
    }
    label = first_of(contents, LABEL_NAMES)
    row = {
        "image": _image(contents),
        "caption": first_of(captions, captions),
        "label": first_of(notes, LABEL_NAMES) if label is None else label,
    }
    return row_sample(row, place, "")


def _by_ending(key: str, group: list[Member]) -> dict[str, bytes]:
    """Returns the contents of a sample's members by ending: all that follows its name and a dot.

    If no ending is known, as in `v2.jpg`, `v2.txt`, the ending is what follows the last dot.
    """
    contents = {
        member.name[len(key) + 1 :].lower(): member.content
        for member in group
        if member.name and not member.fault
    }
    last = {ending.rpartition(".")[2]: content for ending, content in contents.items()}
    return contents if _KNOWN.intersection(contents) or len(last) < len(contents) else last


def _image(contents: Mapping[str, bytes]) -> bytes | None:
    """Returns the first member that is an image by its content, else the first that may be one.

    Members named `jpg` and the like go before others, such as depth maps. A damaged image is thus
    found by its name, and cleaning gives its reason.
    """
    named = [contents[name] for name in IMAGE_NAMES if name in contents]
    members = [*named, *(content for ending, content in contents.items() if ending not in _KNOWN)]
    by_content = (content for content in members if image_format(content))
    return next(by_content, next(iter(members), None))


def _groups(members: Iterator[Member]) -> Iterator[tuple[str, list[Member]]]:
    """Yields each name with its neighbouring members. One without a name joins those before it."""
    group: list[Member] = []
    names: set[str] = set()
    for member in members:
        is_other = (
            bool(names) and bool(member.name) and _stem(member.name) != _stem(next(iter(names)))
        )
        if is_other or member.name in names:
            yield from _split(group)
            group, names = [], set()
        group.append(member)
        names |= {member.name} - {""}
    if group:
        yield from _split(group)


def _split(group: list[Member]) -> Iterator[tuple[str, list[Member]]]:
    """Yields the samples among members whose names are equal up to the first dot.

    Members such as `a.1.jpg`, `a.1.txt`, `a.2.jpg`, of which endings repeat, are samples `a.1` and
    `a.2`: their names count up to the last dot.
    """
    names = [member.name for member in group if member.name]
    last = [os.path.splitext(name)[1] for name in names]
    if len(set(last)) == len(last):
        yield _stem(names[0]) if names else "", group
        return
    by_stem: dict[str, list[Member]] = {}
    for member in group:
        # A member without a name joins the sample before it.
        key = os.path.splitext(member.name)[0] or next(
            reversed(by_stem), os.path.splitext(names[0])[0]
        )
        by_stem.setdefault(key, []).append(member)
    yield from by_stem.items()


def _stem(name: str) -> str:
    """Returns a member's name up to the first dot behind the folders."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _members(url: str) -> Iterator[Member]:
    """Yields the files of an archive that are not hidden; an unreadable one as its fault.

    `tarfile` parses single headers only. Its walk over an archive skips damaged headers silently,
    ends at one behind a long name, and keeps all headers in memory.
    """
    with open_file(url) as file:
        is_cut_short, whole = False, _has_end(file)
        try:
            for member in _walk(file):
                yield member
                is_cut_short = member.fault is not None and member.fault.reason == _CUT
        except UNREADABLE as error:
            yield Member("(end)", fault=Fault(_CUT, first_line(error)))
        else:
            if not whole and not is_cut_short:
                yield Member("(end)", fault=Fault(_CUT))


def _walk(file: Any) -> Iterator[Member]:
    long_name, damaged = "", False
    while len(block := file.read(tarfile.BLOCKSIZE)) == tarfile.BLOCKSIZE:
        if not any(block):
            continue
        header = _header(block)
        if header is None:
            if not damaged:
                yield Member("", fault=_DAMAGED)
            long_name, damaged = "", True
            continue
        damaged, name, content = False, long_name or header.name, b""
        if header.isreg() or header.type not in tarfile.SUPPORTED_TYPES or header.type in _NOTES:
            try:
                content = _content(file, header.size)
            except UNREADABLE as error:
                yield Member(name, fault=Fault(_CUT, first_line(error)))
                return
        if header.type == tarfile.GNUTYPE_LONGNAME:
            long_name = content.rstrip(b"\0").decode("utf-8", "replace")
        elif header.type == tarfile.XHDTYPE:
            long_name = _pax_path(content)
        elif header.type not in _NOTES:
            if not header.isdir() and not os.path.basename(name).startswith("."):
                yield Member(name, content, _fault(name, header))
            long_name = ""


def _header(block: bytes) -> tarfile.TarInfo | None:
    """Returns a block as the header of a member, None if it is damaged or not a header."""
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "replace")
    except (tarfile.HeaderError, ValueError):
        return None
    return header if header.size >= 0 else None


def _content(file: Any, size: int) -> bytes:
    """Reads a member and the padding of its last block.

    Of a member of more than `LARGEST_FILE` bytes nothing is kept.

    Raises:
        EOFError: the archive ends before.
    """
    kept = size if size <= LARGEST_FILE else 0
    content, left = file.read(kept), -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE - kept
    while left > 0 and (skipped := len(file.read(min(left, 2**20)))):
        left -= skipped
    if len(content) < kept or left >= tarfile.BLOCKSIZE:
        raise EOFError("unexpected end")
    return content


def _fault(name: str, header: tarfile.TarInfo) -> Fault | None:
    if name.startswith("/") or ".." in name.split("/"):
        return Fault("unsafe path", name)
    if header.type in (tarfile.LNKTYPE, tarfile.SYMTYPE):
        return Fault("archive member is a link", f"{name} to {header.linkname}")
    if header.size > LARGEST_FILE:
        return Fault("file too large", f"{name}, {header.size:,} bytes")
    return None


def _pax_path(content: bytes) -> str:
    """Returns the path in an extended header, records of `LENGTH NAME=VALUE`, or ""."""
    while (length := content.partition(b" ")[0]).isdigit() and 0 < int(length[:9]) <= len(content):
        name, _, value = content[len(length) + 1 : int(length) - 1].partition(b"=")
        if name == b"path":
            return value.decode("utf-8", "replace")
        content = content[int(length) :]
    return ""


def _has_end(file: Any) -> bool:
    """Returns whether an archive ends in two empty blocks.

    Always true for a compressed one: its decompressor reports an early end.
    """
    if is_compressed(file):
        return True
    file.seek(0, os.SEEK_END)
    file.seek(max(0, file.tell() - 2 * tarfile.BLOCKSIZE))
    end = file.read()
    file.seek(0)
    return len(end) == 2 * tarfile.BLOCKSIZE and not any(end)
