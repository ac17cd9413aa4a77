"""Examples of an input for an encoder: everything that `prepare_data` reads, and shards of ours."""

import dataclasses
import functools
import glob
import hashlib
import itertools
import os
import unicodedata
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from m3ae_tpu.data.manifest import locate
from m3ae_tpu.data.shards import DamagedRecordError, Shards, open_shards
from m3ae_tpu.data.visible_text import trim
from m3ae_tpu.errors import UserError
from m3ae_tpu.features.options import ExampleKind
from m3ae_tpu.files import home_expanded, is_remote
from m3ae_tpu.prepare.cleaning import clean_captions
from m3ae_tpu.prepare.options import CleaningOptions
from m3ae_tpu.prepare.pieces import Piece, find_pieces
from m3ae_tpu.prepare.readers.image_files import read_image_files
from m3ae_tpu.prepare.samples import Fault, Sample

SHARD = ".array_record"
_RECORDS_PER_PIECE = 1_000
# Every image that can be decoded gets a row, and long texts are cut, not dropped.
FIT = CleaningOptions(min_shorter_side=1, max_caption_characters=1_000_000)
"""Conditions that an image and a text must meet to get features."""


class Place(NamedTuple):
    """A place in an input: the next example to read."""

    piece: int = 0
    number: int = 0
    """Examples of the piece before it."""


START = Place()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """One example as it was found."""

    place: str
    """File and, within it, member, row or record."""
    id: str = ""
    """The record's id in a shard; else a digest of the content."""
    image: bytes = b""
    """Encoded, as it was found."""
    text: str = ""
    """The first good caption; empty without one."""
    label: str = ""
    """Class; empty without one."""
    fault: Fault | None = None
    """Reason why it has no features; it then has a place only."""


@dataclasses.dataclass(frozen=True)
class _Files:
    """A piece of a collection, as `prepare_data` reads it."""

    piece: Piece
    kind: ExampleKind
    roots: frozenset[str]

    def examples(self) -> Iterator[Example]:
        for sample in self.piece.samples():
            if self.piece.format == "image" and os.path.dirname(sample.place) in self.roots:
                # The name of the input itself is not a class.
                sample = sample._replace(label="")
            yield _as_example(sample, self.kind)

    def key(self) -> str:
        return self.piece.key()


@dataclasses.dataclass(frozen=True)
class _Records:
    """A range of the records of shards."""

    shards: Shards
    start: int
    stop: int
    kind: ExampleKind

    def examples(self) -> Iterator[Example]:
        for index in range(self.start, self.stop):
            place = self.shards.place(index)
            try:
                record = self.shards[index]
            except DamagedRecordError as error:
                yield Example(place=place, fault=Fault("damaged record", str(error)[:100]))
                continue
            image = record.image or None
            sample = Sample(place, image, record.captions, record.label_name)
            yield _as_example(sample, self.kind, id=record.id)

    def key(self) -> str:
        return f"{self._digest} {self.start} {self.stop}"

    @functools.cached_property
    def _digest(self) -> str:
        return self.shards.digest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Input:
    """The examples of files and folders, in a fixed order."""

    kind: ExampleKind
    parts: Sequence[_Files | _Records]
    count: int | None
    """Number of examples, if it can be told without reading them."""
    passed_over: dict[str, tuple[int, str]]
    """Bytes of each file that is not read, and the reason."""

    @property
    def digest(self) -> str:
        """Digest of names and sizes of all files, and of the contents of shards."""
        keys = "\n".join([self.kind, *(part.key() for part in self.parts)])
        return hashlib.sha256(keys.encode("utf-8", "surrogateescape")).hexdigest()

    def read(self, start: Place = START) -> Iterator[tuple[Place, Example]]:
        """Yields the examples from a place on, each with the place behind it."""
        for number in range(start.piece, len(self.parts)):
            skipped = start.number if number == start.piece else 0
            examples = itertools.islice(self.parts[number].examples(), skipped, None)
            for count, example in enumerate(examples, skipped + 1):
                yield Place(number, count), example


def open_input(given: Sequence[str], kind: ExampleKind) -> Input:
    """Lists what files and folders hold, in a fixed order.

    Args:
        given: Files, folders and globs; shards are recognised by their ending, also in a folder.
        kind: Content of an example. What an example lacks is its fault.

    Raises:
        UserError: something does not exist, or holds nothing of the kind.
    """
    others = [name for name in given if not _shard_pattern(name)]
    parts: list[_Files | _Records] = []
    count, passed_over = 0, {}
    for pattern in filter(None, map(_shard_pattern, given)):
        shards = open_shards(pattern)
        count += len(shards)
        parts += [
            _Records(shards, start, min(start + _RECORDS_PER_PIECE, len(shards)), kind)
            for start in range(0, len(shards), _RECORDS_PER_PIECE)
        ]
    if others or not given:
        collection = find_pieces(others, "text" if kind == "text" else "image")
        roots = frozenset(os.path.abspath(home_expanded(name)) for name in others)
        parts += [_Files(piece, kind, roots) for piece in collection.pieces]
        are_images = all(piece.format == "image" for piece in collection.pieces)
        count = count + sum(len(piece.urls) for piece in collection.pieces) if are_images else None
        passed_over = dict(collection.passed_over)
    return Input(kind=kind, parts=parts, count=count, passed_over=passed_over)


def read_file(path: str, kind: ExampleKind) -> Example:
    """Returns the example of a loose image and the text beside it."""
    return _as_example(next(read_image_files([path])), kind)


def choose_input(given: Sequence[str], kinds: Sequence[ExampleKind]) -> Input:
    """Opens an input as the richest of some kinds that its first good example has.

    Raises:
        UserError: it holds nothing of these kinds.
    """
    errors: list[UserError] = []
    for kind in ("both", "image", "text"):
        if kind not in kinds:
            continue
        try:
            found = open_input(given, kind)
        except UserError as error:
            errors.append(error)
            continue
        first = next(itertools.islice(_good(found), 1), None)
        if first is not None or len(kinds) == 1:
            return found
        reason = next((example.fault for _, example in found.read()), "it holds no example")
        errors.append(
            UserError(f"--input = {','.join(given)} holds nothing of kind {kind}: {reason}.")
        )
    raise errors[0]


_LOOKED_AT = 100
"""Examples at the start among which a good one is searched."""


def _good(found: Input) -> Iterator[Example]:
    for _, example in itertools.islice(found.read(), _LOOKED_AT):
        if example.fault is None:
            yield example


def _as_example(sample: Sample, kind: ExampleKind, *, id: str = "") -> Example:
    """Returns a sample's content of a kind, or the fault that leaves it out."""
    image, text, fault = b"", "", sample.fault
    if fault is None and kind != "text":
        image = sample.image or b""
        fault = None if image else Fault("no image" if sample.image is None else "empty image")
    if fault is None and kind != "image":
        texts, faults = clean_captions(sample.captions, FIT)
        text = texts[0] if texts else ""
        fault = None if text else next(iter(faults), Fault("no text"))
    if fault is not None:
        return Example(place=sample.place, fault=fault)
    label = unicodedata.normalize("NFC", trim(sample.label))
    id = id or hashlib.sha256(image + b"\0" + text.encode()).hexdigest()[:32]
    return Example(place=sample.place, id=id, image=image, text=text, label=label)


def _shard_pattern(given: str) -> str:
    """Returns a glob of the shards that a name stands for; empty if it does not name shards."""
    if is_remote(given):
        return given if SHARD in given else ""
    path = locate(given)
    if os.path.isdir(path):
        return f"{given.rstrip('/')}/*{SHARD}" if glob.glob(f"{glob.escape(path)}/*{SHARD}") else ""
    found = glob.glob(path)
    is_starter = given.startswith("starter/") and not os.path.exists(given)
    return given if is_starter or (found and all(name.endswith(SHARD) for name in found)) else ""
