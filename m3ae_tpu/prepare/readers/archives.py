"""Tars of samples, as webdataset, img2dataset and `tar` itself write them."""

import bisect
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from m3ae_tpu.data.image_formats import image_format
from m3ae_tpu.prepare.opening import UNREADABLE
from m3ae_tpu.prepare.readers.tar_groups import (
    IMAGE_ENDINGS,
    TEXT_ENDINGS,
    Group,
    group_members,
)
from m3ae_tpu.prepare.readers.tar_headers import BLOCK
from m3ae_tpu.prepare.readers.tar_members import (
    Listing,
    Member,
    list_members,
    open_archive,
    read_member,
    show_name,
)
from m3ae_tpu.prepare.samples import (
    CAPTION_NAMES,
    LABEL_NAMES,
    Fault,
    Sample,
    as_captions,
    as_label,
    first_line,
    first_of,
)


def read_tar(url: str) -> Iterator[Sample]:
    """Yields the samples of an archive: members whose names are equal up to their endings.

    The headers of all members are read first, so that they may stand in any order. Reading goes on
    behind a damaged header. The member that it hides is missing in its sample; if no sample near it
    lacks a member, the loss is a sample of its own. So is the early end of an archive. Members
    outside of the archive's folder are refused.
    """
    try:
        with open_archive(url) as (file, error):
            listing = list_members(file, error)
            groups = list(group_members(listing))
            has_classes = any(_of_role(group.members, LABEL_NAMES) for group in groups)
            for group in groups:
                yield _tar_sample(url, group, file, has_classes)
    except UNREADABLE as error:
        yield Sample(place=url, fault=Fault("unreadable file", first_line(error)))
        return
    yield from _lost_samples(url, listing, groups)


def _lost_samples(url: str, listing: Listing, groups: list[Group]) -> Iterator[Sample]:
    """Yields a sample for each loss that no sample of the archive shows."""
    for position in _unexplained(listing, groups):
        index = bisect.bisect(listing.members, position, key=lambda member: member.position)
        before = show_name(listing.members[index - 1].name) if index else "the start"
        fault = Fault("damaged archive header", f"the first one behind {before}")
        yield Sample(place=f"{url}, behind a damaged header", fault=fault)
    if listing.cut:
        yield Sample(place=f"{url}, (end)", fault=listing.cut)
    elif not listing.members and not listing.damaged:
        yield Sample(
            place=url, fault=Fault("archive without files", "at most folders and hidden files")
        )


def _unexplained(listing: Listing, groups: list[Group]) -> list[int]:
    """Returns the positions of damaged headers whose members no sample near them lacks.

    Where the members of samples are not neighbours, any sample may be the one that lacks it.
    """
    if not listing.damaged:
        return []
    usual = max((len(group.members) for group in groups), default=0)
    lacking = [group for group in groups if len(group.members) < usual]
    near = {member.position for group in lacking for member in group.members.values()}
    positions = [
        position for position in listing.damaged if not {position - 1, position + 1} & near
    ]
    are_apart = any(_stands_apart(group, listing.damaged) for group in groups)
    return positions[len(lacking) :] if are_apart else positions


def _stands_apart(group: Group, damaged: list[int]) -> bool:
    """Returns whether members of other samples stand between those of this one."""
    positions = sorted(member.position for member in group.members.values())
    first, last = positions[0], positions[-1]
    hidden = bisect.bisect(damaged, last) - bisect.bisect(damaged, first)
    return last - first - hidden >= len(positions)


def _tar_sample(url: str, group: Group, file: Any, has_classes: bool) -> Sample:
    """Returns the sample of some members.

    Args:
        url: The archive, for messages.
        group: The members.
        file: The archive, open for reading at any position.
        has_classes: Whether any sample of the archive has a member for its class. If none has, the
            class is the name of the image's folder.
    """
    place = f"{url}, {show_name(group.key)}"
    texts = _of_role(group.members, CAPTION_NAMES)
    labels = _of_role(group.members, LABEL_NAMES)
    data = _of_role(group.members, ("json",))
    image = _find_image(group.members, file)
    if isinstance(image, Fault):
        return Sample(place=place, fault=image)
    needed = {**texts, **labels, **data} | ({"image": image} if image else {})
    contents: dict[str, bytes] = {}
    for role, member in needed.items():
        content = read_member(file, member)
        if isinstance(content, Fault):
            return Sample(place=place, fault=content)
        contents[role] = content
    values, remark = _read_json(contents.get(next(iter(data), "")))
    captions = {"own": first_of(contents, texts), "json": first_of(values, CAPTION_NAMES)}
    classes = {
        "own": first_of(contents, labels),
        "json": first_of(values, LABEL_NAMES),
        "folder": _folder(image.name) if image and not has_classes else None,
    }
    members = ", ".join(show_name(member.name) for member in group.members.values())
    return Sample(
        place=place,
        image=contents.get("image"),
        captions=as_captions(first_of(captions, captions)),
        label=as_label(first_of(classes, classes)),
        found="; ".join(filter(None, (f"found {members}", group.note, remark))),
    )


def _of_role(members: Mapping[str, Member], names: Iterable[str]) -> dict[str, Member]:
    """Returns the members of a sample that have one of these endings, in the order of `names`.

    If there is none, a single one that ends so, such as `caption.txt`, is meant. Of several it is
    not known which.
    """
    found = {name: members[name] for name in names if name in members}
    if found:
        return found
    longer = [ending for ending in members if "." in ending and ending.rpartition(".")[2] in names]
    return {ending: members[ending] for ending in longer} if len(longer) == 1 else {}


def _find_image(members: Mapping[str, Member], file: Any) -> Member | Fault | None:
    """Returns the image of a sample: the first by its ending, else the only one by its content.

    The ending counts first: a damaged image must not be replaced by its depth map. Without any
    image, a member that is not a text is returned, for cleaning to say what is wrong with it.
    """
    for ending in IMAGE_ENDINGS:
        if ending in members:
            return members[ending]
    others = {
        ending: member
        for ending, member in members.items()
        if ending.rpartition(".")[2] not in TEXT_ENDINGS
    }
    plain = [member for ending, member in others.items() if "." not in ending]
    starts = {member.position: _start(file, member) for member in plain}
    found = [member for member in plain if image_format(starts[member.position])] or [
        member for ending, member in others.items() if ending.rpartition(".")[2] in IMAGE_ENDINGS
    ]
    if len(found) > 1:
        names = ", ".join(show_name(member.name) for member in found)
        return Fault("several images in one sample", names)
    for member in plain:
        if not found and starts[member.position][257:262] == b"ustar":
            return Fault("archive in an archive", f"{show_name(member.name)}: unpack it first")
    return next(iter([*found, *plain]), None)


def _start(file: Any, member: Member) -> bytes:
    """Returns the first bytes of a member, as many as tell its format, or b""."""
    content = read_member(file, member)
    return b"" if isinstance(content, Fault) else content[:BLOCK]


def _read_json(content: bytes | None) -> tuple[dict[str, Any], str]:
    """Returns the values of a sample's JSON by name in lower case, and a remark if it has none.

    A text, or a list of texts, is its captions.
    """
    if content is None:
        return {}, ""
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        return {}, f"its JSON is damaged: {first_line(error)}"
    if isinstance(values, str | list):
        return {"captions": values}, ""
    if isinstance(values, dict):
        return {name.lower(): value for name, value in values.items()}, ""
    return {}, "its JSON is not an object"


def _folder(name: str) -> str | None:
    """Returns the name of a member's folder, None if it is not in one."""
    folders = re.split(r"[/\\]", name)[:-1]
    return folders[-1] if folders else None
