"""A source's examples by index; where a record is broken, the next good one of the same source
stands in.

Nothing is left out and nothing moves up: a batch stays full, and what stands where hangs on the
records' bytes alone, never on a crop, a worker or a restart.
"""

import dataclasses
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8

from m3ae_tpu.config import Kind
from m3ae_tpu.data.images import ImageSizeError, decode_image
from m3ae_tpu.data.records import DamagedRecordError, Record, Shards

type Fault = Literal[
    "damaged_record",
    "text_not_utf8",
    "no_image",
    "image_size",
    "undecodable_image",
    "no_caption",
    "overlong_caption",
]
"""What is wrong with a record. An overlong caption is cut; a record with any other fault is
replaced.
"""

CUT: Fault = "overlong_caption"
_MAX_CHARACTERS = 20_000
"""Captions are cut to these before they are tokenised: far more than fit into a row, and no row
takes seconds.
"""
_MAX_SUBSTITUTES = 2_000
"""Records tried in the place of a broken one: more than the 64 KiB that one damaged block of a
shard holds.
"""
_KEPT_BYTES = 2**28
"""Decoded images that a process keeps of a source that fits: 256 MB."""


@dataclasses.dataclass(frozen=True)
class Example:
    """What pre-training sees of a record: id, captions, image, and nothing else."""

    id: str
    captions: tuple[str, ...]
    """At least one, none empty; none at all of an image-only source."""
    image: bytes
    """Encoded; empty of a text-only source."""
    fault: Fault | None = None
    """What was wrong with the record at the index asked for."""


type Pixels = UInt8[np.ndarray, "height width 4"]


class Examples:
    """The examples of a source, by index of their record.

    Keeps decoded images if all of the source fits into 256 MB: a small set is decoded once, not
    every epoch.
    """

    def __init__(self, shards: Shards, kind: Kind, part: range):
        """Takes the records `part` of `shards`: others stand in for none of them."""
        self.shards, self.part = shards, part
        self.kind: Kind = kind
        self._kept: dict[int, tuple[Example, Pixels]] = {}
        self._kept_bytes = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return Examples, (self.shards, self.kind, self.part)

    def read(self, index: int) -> Example | Fault:
        """Returns the example of record `index` as it is stored, or what is wrong with the record.

        Raises:
            RuntimeError: its shard is gone, changed or unreadable.
        """
        if index in self._kept:
            return self._kept[index][0]
        try:
            record = self.shards[index]
        except DamagedRecordError as error:
            return (
                "text_not_utf8"
                if isinstance(error.__cause__, UnicodeDecodeError)
                else "damaged_record"
            )
        captions = _usable_captions(record) if self.kind != "image" else ()
        if self.kind != "image" and not captions:
            return "no_caption"
        if self.kind != "text" and not record.image:
            return "no_image"
        is_cut = any(len(caption) > _MAX_CHARACTERS for caption in captions)
        if is_cut:
            captions = tuple(caption[:_MAX_CHARACTERS] for caption in captions)
        image = record.image if self.kind != "text" else b""
        return Example(record.id, captions, image, CUT if is_cut else None)

    def decode(self, index: int, found: Example | Fault) -> tuple[Example, Pixels | None]:
        """Returns the example of record `index` with its image, or the next good one where the
        record is broken.

        Args:
            index: Of the record.
            found: What `read` returned for it.

        Raises:
            RuntimeError: none of the next records is good either, or one's shard is gone, changed
                or unreadable.
        """
        if index in self._kept:
            return self._kept[index]
        decoded = self._decode(found)
        if isinstance(decoded, str):
            example, image = self._substitute(index)
            decoded = dataclasses.replace(example, fault=decoded), image
        example, image = decoded
        if (
            image is not None
            and max(self._kept_bytes, image.nbytes * len(self.part)) <= _KEPT_BYTES
        ):
            self._kept[index] = example, image
            self._kept_bytes += image.nbytes
        return decoded

    def _substitute(self, index: int) -> tuple[Example, Pixels | None]:
        place, tries = self.part.index(index), min(_MAX_SUBSTITUTES, len(self.part) - 1)
        for distance in range(1, tries + 1):
            decoded = self._decode(self.read(self.part[(place + distance) % len(self.part)]))
            if not isinstance(decoded, str):
                return decoded
        raise RuntimeError(
            f"{self.shards.place(index)} is broken, and so are all {tries:,} records after it. "
            "Copy or make these shards again, or take them out of data.sources."
        )

    def _decode(self, found: Example | Fault) -> tuple[Example, Pixels | None] | Fault:
        """Returns an example with its image, decoded to its last byte, or what is wrong with it."""
        if isinstance(found, str):
            return found
        if self.kind == "text":
            return found, None
        try:
            return found, decode_image(found.image, "RGBX")
        except ImageSizeError:
            return "image_size"
        except ValueError:
            return "undecodable_image"


def _usable_captions(record: Record) -> tuple[str, ...]:
    return tuple(caption for caption in record.captions if caption.strip())
