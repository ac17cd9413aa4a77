"""A source's examples by index; a broken record is replaced by the next good one of its source.

Batches stay full and other rows do not shift. The substitute depends only on the stored bytes, not
on crops, workers or restarts.
"""

import dataclasses
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from m3ae_tpu.config import Kind
from m3ae_tpu.data.image_errors import ImageSizeError
from m3ae_tpu.data.images import decode_image
from m3ae_tpu.data.pixel_memory import PixelMemory
from m3ae_tpu.data.records import Record
from m3ae_tpu.data.shards import DamagedRecordError, Shards
from m3ae_tpu.data.visible_text import is_blank
from m3ae_tpu.errors import DataError

type Fault = Literal[
    "damaged_record",
    "text_not_utf8",
    "no_image",
    "image_size",
    "undecodable_image",
    "no_caption",
    "overlong_caption",
]
"""Fault of a record. An overlong caption is cut; with any other fault the record is replaced."""

CUT: Fault = "overlong_caption"
_MAX_CHARACTERS = 20_000
"""Captions are cut to this length before they are tokenised; bounds the time of a row. Far more
than fit into a row.
"""
_MAX_SUBSTITUTES = 2_000
"""Records tried in place of a broken one: more than one damaged block of a shard, 64 KiB, holds."""
_CACHE_BYTES = 2**28
"""Decoded images of a source that a process may keep: 256 MB."""
_MEMORY = PixelMemory()


@dataclasses.dataclass(frozen=True)
class Example:
    """A record as training reads it: id, captions, class and encoded image only."""

    id: str
    captions: tuple[str, ...]
    """At least one, none blank; an empty tuple in an image-only source."""
    image: bytes
    """Encoded; empty in a text-only source."""
    fault: Fault | None = None
    """Fault of the record at the requested index."""
    label_name: str = ""
    """Class; empty for a record without one."""


type Pixels = UInt8[np.ndarray, "height width 4"]


class Examples:
    """The examples of a source, by index of their record.

    Caches decoded images if the whole source fits into 256 MB: a small set is decoded only once.
    """

    def __init__(self, shards: Shards, kind: Kind, split: range):
        """Takes shards and the indices of this source's records; substitutes come from them too."""
        self.shards, self.split = shards, split
        self.kind: Kind = kind
        self._cache: dict[int, tuple[Example, Pixels]] = {}
        self._cached_bytes = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return Examples, (self.shards, self.kind, self.split)

    def read(self, index: int) -> Example | Fault:
        """Returns the example stored at record `index`, or the record's fault.

        Raises:
            DataError: its shard is gone, changed or unreadable.
        """
        if index in self._cache:
            return self._cache[index][0]
        try:
            record = self.shards[index]
        except DamagedRecordError as error:
            is_text = isinstance(error.__cause__, UnicodeDecodeError)
            return "text_not_utf8" if is_text else "damaged_record"
        captions = _usable_captions(record) if self.kind != "image" else ()
        if self.kind != "image" and not captions:
            return "no_caption"
        if self.kind != "text" and not record.image:
            return "no_image"
        is_cut = any(len(caption) > _MAX_CHARACTERS for caption in captions)
        if is_cut:
            captions = tuple(caption[:_MAX_CHARACTERS] for caption in captions)
        image = record.image if self.kind != "text" else b""
        return Example(record.id, captions, image, CUT if is_cut else None, record.label_name)

    def decode(self, index: int, stored: Example | Fault) -> tuple[Example, Pixels | None]:
        """Returns the example of record `index` with its image; a substitute for a broken record.

        The pixels may be gone when this thread decodes the next example.

        Args:
            index: The record's.
            stored: Result of `read(index)`.

        Raises:
            DataError: none of the next records is good either, or the shard of one is gone, changed
                or unreadable.
        """
        if index in self._cache:
            return self._cache[index]
        decoded = self._decode(stored)
        if isinstance(decoded, str):
            example, image = self._substitute(index)
            decoded = dataclasses.replace(example, fault=decoded), image
        example, image = decoded
        if (
            image is not None
            and max(self._cached_bytes, image.nbytes * len(self.split)) <= _CACHE_BYTES
        ):
            self._cache[index] = example, image.copy()
            self._cached_bytes += image.nbytes
        return decoded

    def _substitute(self, index: int) -> tuple[Example, Pixels | None]:
        number, tries = self.split.index(index), min(_MAX_SUBSTITUTES, len(self.split) - 1)
        for distance in range(1, tries + 1):
            decoded = self._decode(self.read(self.split[(number + distance) % len(self.split)]))
            if not isinstance(decoded, str):
                return decoded
        raise DataError(
            f"{self.shards.place(index)} is broken, and so are all {tries:,} records after it. "
            "Copy or make these shards again, or take them out of data.sources."
        )

    def _decode(self, stored: Example | Fault) -> tuple[Example, Pixels | None] | Fault:
        """Returns an example with its image, decoded to its last byte, or its fault."""
        if isinstance(stored, str):
            return stored
        if self.kind == "text":
            return stored, None
        try:
            return stored, decode_image(stored.image, "RGBX", _MEMORY)
        except ImageSizeError:
            return "image_size"
        except ValueError:
            return "undecodable_image"


def _usable_captions(record: Record) -> tuple[str, ...]:
    return tuple(caption for caption in record.captions if not is_blank(caption))
