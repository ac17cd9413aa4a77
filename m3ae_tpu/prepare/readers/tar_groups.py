"""Members of a tar that belong to one sample: by their names, wherever they stand."""

import itertools
import re
import unicodedata
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from m3ae_tpu.prepare.readers.tar_members import Listing, Member, show_name
from m3ae_tpu.prepare.samples import CAPTION_NAMES, IMAGE_NAMES, LABEL_NAMES

IMAGE_ENDINGS = (
    *IMAGE_NAMES,
    *("tif", "gif", "bmp", "avif", "jp2", "ppm", "pgm", "pbm", "pnm", "jxl", "heic", "heif"),
)
"""Endings of images. Of several in a sample the first counts."""
TEXT_ENDINGS = (*CAPTION_NAMES, *LABEL_NAMES, "json")
"""Endings of captions, classes and data about them."""

_SAME = {"jpeg": "jpg", "jpe": "jpg", "jfif": "jpg", "tiff": "tif"}
"""Endings that are another spelling of one."""
_EXTRA = re.compile(r"[A-Za-z_][\w.-]*", re.ASCII)
"""Middle of a name that may say what a further member is, such as `depth` in `map.depth.png`."""


class Group(NamedTuple):
    """Members of one sample."""

    key: str
    """Part of the names that they share."""
    members: dict[str, Member]
    """Members by their endings in lower case: all that follows the key and a dot."""
    note: str = ""
    """Remark on members that were not put together."""


class _Part(NamedTuple):
    """A member, and what its name is made of: `stem.middle.ending`."""

    middle: str
    ending: str
    member: Member


def group_members(listing: Listing) -> Iterator[Group]:
    """Yields the samples of an archive, in the order of their first members.

    Names that are equal up to the first dot are a sample, also if they are not neighbours. If more
    dots follow, what stands between the first and the last one decides: see `_by_key`. Names that
    repeat are samples of their own, with the members that stand beside them.
    """
    by_stem: dict[str, list[_Part]] = {}
    for member in listing.members:
        stem, part = _split_name(member)
        by_stem.setdefault(stem, []).append(part)
    damaged = frozenset(listing.damaged)
    for stem, parts in by_stem.items():
        for key, of_key in _by_key(stem, parts).items():
            yield from _by_sample(key, of_key, damaged)


def _split_name(member: Member) -> tuple[str, _Part]:
    name = member.name
    if not name.isascii():
        name = unicodedata.normalize("NFC", name)  # macOS takes accents apart.
    base = max(name.rfind("/"), name.rfind("\\")) + 1
    dot = name.find(".", base)
    if dot < 0:
        return name, _Part("", "", member)
    middle, _, ending = name[dot + 1 :].rpartition(".")
    if ending[:1].isdigit():  # `2024-01-31 10.31.05`: not an ending.
        middle, ending = name[dot + 1 :], ""
    ending = ending.lower()
    return name[:dot], _Part(middle, _SAME.get(ending, ending), member)


def _by_key(stem: str, parts: list[_Part]) -> dict[str, list[_Part]]:
    """Returns the members of each sample among names that are equal up to the first dot.

    `map.depth.png` beside `map.jpg` belongs to it. A middle that no extra member has, as in
    `v1.0.jpg`, or that has both image and text, as `map.new.jpg` and `map.new.txt`, is part of the
    sample's name. So is every middle if there is no member without one.
    """
    if not any(part.middle for part in parts):
        return {stem: parts}
    by_middle: dict[str, list[_Part]] = {}
    for part in parts:
        by_middle.setdefault(part.middle, []).append(part)
    samples: dict[str, list[_Part]] = {}
    for middle, of_middle in by_middle.items():
        endings = {part.ending for part in of_middle}
        is_extra = (
            "" in by_middle
            and _EXTRA.fullmatch(middle)
            and (endings.isdisjoint(IMAGE_ENDINGS) or endings.isdisjoint(TEXT_ENDINGS))
        )
        if is_extra:
            of_middle = [part._replace(ending=f"{middle}.{part.ending}") for part in of_middle]
        key = stem if is_extra or not middle else f"{stem}.{middle}"
        samples.setdefault(key, []).extend(of_middle)
    return samples


def _by_sample(key: str, parts: list[_Part], damaged: Collection[int]) -> Iterator[Group]:
    """Yields the samples of one key: one, unless endings repeat.

    A repeated key comes from archives that were appended to each other. Members of the same ending
    in another spelling, such as `a.jpg` and `a.JPG`, share texts that could belong to either: each
    of them is alone.
    """
    members = {part.ending: part.member for part in parts}
    if len(members) == len(parts):
        yield Group(key, members)
        return
    endings = tuple(members)
    for _, of_archive in itertools.groupby(parts, lambda part: part.member.part):
        for sample, note in _split_repeated(list(of_archive), endings, damaged):
            yield Group(key, sample, note)


def _split_repeated(
    parts: list[_Part], endings: tuple[str, ...], damaged: Collection[int]
) -> Iterator[tuple[dict[str, Member], str]]:
    """Yields the samples of one key and one archive, each with a remark.

    Where a member is missing, the next one of its name must not take its place. So members that
    are not neighbours are put together only if no sample lacks one, and neighbours only in the
    order of the first sample.

    Args:
        parts: Members in the order of the archive.
        endings: Endings of all samples of the key, in the order in which they first occurred.
        damaged: Positions of damaged headers.
    """
    names = {part.member.name for part in parts}
    is_ambiguous = len({part.ending for part in parts}) < len(names)
    if is_ambiguous or parts[0].member.position - 1 in damaged:
        note = f"ambiguous: {', '.join(sorted(map(show_name, names)))}" if is_ambiguous else ""
        yield from (({part.ending: part.member}, note) for part in parts)
        return
    samples = list(_until_repeated(parts, {}))
    if damaged or any(tuple(sample) != endings for sample in samples):
        ranks = {ending: rank for rank, ending in enumerate(endings)}
        samples = list(_until_repeated(parts, ranks))
    yield from ((sample, "its name repeats") for sample in samples)


def _until_repeated(parts: list[_Part], ranks: Mapping[str, int]) -> Iterator[dict[str, Member]]:
    """Yields stretches of members without a repeated ending.

    With `ranks`, a stretch holds neighbours of rising rank only.
    """
    sample: dict[str, Member] = {}
    for before, part in itertools.pairwise([parts[0], *parts]):
        is_next = part.member.position == before.member.position + 1
        rises = not ranks or (is_next and ranks[part.ending] > ranks[before.ending])
        if sample and (not rises or part.ending in sample):
            yield sample
            sample = {}
        sample[part.ending] = part.member
    yield sample
