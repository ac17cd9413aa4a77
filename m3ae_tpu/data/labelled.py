"""Labelled examples in memory, with the test transform: for probes and evaluation, never for
pre-training.
"""

import concurrent.futures
import dataclasses

import numpy as np
from jaxtyping import Bool, Int32, UInt8

from m3ae_tpu.data.images import decode_image, resize_and_crop_center
from m3ae_tpu.data.shards import open_shards
from m3ae_tpu.data.text import Tokenizer
from m3ae_tpu.errors import require


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledExamples:
    """Examples in the order of their records."""

    image: UInt8[np.ndarray, "examples size size 3"]
    """Shorter side resized, centre cropped."""
    text: Int32[np.ndarray, "examples length"]
    """Token ids of the main caption."""
    text_valid: Bool[np.ndarray, "examples length"]
    """Which of them are tokens; none, where there is no caption."""
    label: Int32[np.ndarray, " examples"]
    """Index into `label_names`."""
    label_names: tuple[str, ...]
    """Classes, sorted by name unless they were given."""
    id: tuple[str, ...]
    title: tuple[str, ...]
    group: tuple[str, ...]
    """Near-duplicate group: examples of one group belong on one side of any split."""
    caption: tuple[str, ...]
    """Main caption, or an empty text."""


def read_labelled(
    pattern: str,
    *,
    image_size: int,
    tokenizer: Tokenizer,
    text_length: int,
    limit: int | None = None,
    label_names: tuple[str, ...] | None = None,
) -> LabelledExamples:
    """Reads labelled pairs or images. Nothing is random: the same shards give the same bits.

    Args:
        pattern: Glob of shards, as in `manifest.resolve`.
        image_size: Side of the square images, pixels.
        tokenizer: Encodes the main captions.
        text_length: Tokens of a caption; cut or padded.
        limit: Reads only the first so many records.
        label_names: Classes in their order, where they are known: those of the train part,
            for a test part that may lack some.

    Raises:
        UserError: the shards cannot be read, or a record has no image, no label, or a label that is
            not in `label_names`.
    """
    shards = open_shards(pattern)
    records = [
        shards[index] for index in range(min(len(shards), len(shards) if limit is None else limit))
    ]
    for index, record in enumerate(records):
        require(
            bool(record.label_name) and bool(record.image),
            f"shards = {pattern} hold a record without label or image ({shards.place(index)}). "
            "Name shards of labelled images.",
        )
    names = label_names or tuple(sorted({record.label_name for record in records}))
    unknown = sorted({record.label_name for record in records}.difference(names))
    require(
        not unknown,
        f"shards = {pattern} hold the label {', '.join(unknown[:3])}, which is not among the "
        f"{len(names)} known ones. Name shards with the classes of the train part.",
    )
    captions = tuple(record.captions[0] if record.captions else "" for record in records)
    text, text_valid, _ = tokenizer.encode(captions, text_length)
    numbers = {name: number for number, name in enumerate(names)}
    with concurrent.futures.ThreadPoolExecutor() as pool:
        images = list(
            pool.map(
                lambda record: resize_and_crop_center(decode_image(record.image), image_size),
                records,
            )
        )
    return LabelledExamples(
        image=np.stack(images),
        text=text,
        text_valid=text_valid,
        label=np.array([numbers[record.label_name] for record in records], np.int32),
        label_names=names,
        id=tuple(record.id for record in records),
        title=tuple(record.title for record in records),
        group=tuple(record.group for record in records),
        caption=captions,
    )
