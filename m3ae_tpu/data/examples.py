"""A source's examples by index; where a record is broken, the next good one of the same source stands in.

Nothing is left out and nothing moves up: a batch stays full, and what stands where hangs on the records' bytes
alone, never on a crop, a worker or a restart.
"""

import dataclasses
import struct
from typing import Any, Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

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
"""What is wrong with a record. An overlong caption is cut; a record with any other fault is replaced."""

CUT: Fault = "overlong_caption"
_MAX_CHARACTERS = 20_000
"""Captions are cut to these before they are tokenised: far more than fit into a row, and no row takes seconds."""
_MAX_STAND_INS = 2_000
"""Records tried in the place of a broken one: more than the 64 KiB that one damaged block of a shard holds."""
_KEPT_BYTES = 2**28
"""Decoded images that a process keeps of a source that fits: 256 MB."""
_DAMAGE = (OSError, ValueError, SyntaxError, EOFError, struct.error)
"""What decoders raise for damaged files."""


@dataclasses.dataclass(frozen=True)
class Example:
    """What pre-training sees of a record: id, captions, decoded image, and nothing else."""

    id: str
    captions: tuple[str, ...]
    """At least one, none empty; none at all of an image-only source."""
    image: UInt8[np.ndarray, "height width 3"] | None
    fault: Fault | None = None
    """What was wrong with the record at the index asked for."""


class Examples:
    """The examples of a source, by index of their record.

    Keeps decoded images if all of the source fits into 256 MB: a small set is decoded once, not every epoch.
    """

    def __init__(self, shards: Shards, kind: Kind, part: range):
        """Takes the records `part` of `shards`: others stand in for none of them."""
        self.shards, self.part = shards, part
        self.kind: Kind = kind
        self._kept: dict[int, Example] = {}
        self._kept_bytes = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return Examples, (self.shards, self.kind, self.part)

    def __getitem__(self, index: int) -> Example:
        """Returns the example of record `index`: `decode` of what `read` finds."""
        return self.decode(index, self.read(index))

    def read(self, index: int) -> Record | Fault | None:
        """Returns record `index` as it is stored, or what is wrong with it; None where its example is kept.

        Raises:
            RuntimeError: its shard is gone, changed or unreadable.
        """
        return None if index in self._kept else self._read(index)

    def decode(self, index: int, record: Record | Fault | None) -> Example:
        """Returns the example of record `index`, or of the next good record where that one is broken.

        Args:
            index: Of the record.
            record: What `read` returned for it.

        Raises:
            RuntimeError: none of the next records is good either, or one's shard is gone, changed or unreadable.
        """
        if record is None or index in self._kept:
            return self._kept[index]
        found = self._decode(record)
        if isinstance(found, str):
            found = dataclasses.replace(self._stand_in(index), fault=found)
        image = found.image
        if image is not None and max(self._kept_bytes, image.nbytes * len(self.part)) <= _KEPT_BYTES:
            self._kept[index] = found
            self._kept_bytes += image.nbytes
        return found

    def _stand_in(self, index: int) -> Example:
        place, tries = self.part.index(index), min(_MAX_STAND_INS, len(self.part) - 1)
        for distance in range(1, tries + 1):
            found = self._decode(self._read(self.part[(place + distance) % len(self.part)]))
            if not isinstance(found, str):
                return found
        raise RuntimeError(
            f"{self.shards.place(index)} is broken, and so are all {tries:,} records after it. "
            "Copy or make these shards again, or take them out of data.sources."
        )

    def _read(self, index: int) -> Record | Fault:
        try:
            return self.shards[index]
        except DamagedRecordError as error:
            return "text_not_utf8" if isinstance(error.__cause__, UnicodeDecodeError) else "damaged_record"

    def _decode(self, record: Record | Fault) -> Example | Fault:
        """Returns the example of a record, decoded to its last byte, or what is wrong with it."""
        if isinstance(record, str):
            return record
        captions = _usable_captions(record) if self.kind != "image" else ()
        if self.kind != "image" and not captions:
            return "no_caption"
        image = None
        if self.kind != "text":
            if not record.image:
                return "no_image"
            try:
                image = decode_image(record.image)
            except (ImageSizeError, Image.DecompressionBombError):
                return "image_size"
            except _DAMAGE:
                return "undecodable_image"
        is_cut = any(len(caption) > _MAX_CHARACTERS for caption in captions)
        captions = tuple(caption[:_MAX_CHARACTERS] for caption in captions)
        return Example(record.id, captions, image, CUT if is_cut else None)


def _usable_captions(record: Record) -> tuple[str, ...]:
    return tuple(caption for caption in record.captions if caption.strip())
