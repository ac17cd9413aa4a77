"""Labelled examples in memory, with the test transform: for probes and evaluation only."""

import concurrent.futures
import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int, Int32, UInt8

from m3ae_tpu.data.crops import resize_and_crop_center
from m3ae_tpu.data.images import decode_image
from m3ae_tpu.data.shards import Shards
from m3ae_tpu.data.text import Tokenizer
from m3ae_tpu.errors import DataError, require


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelledExamples:
    """Images with their classes and captions, in the order of their records."""

    images: UInt8[np.ndarray, "examples size size 3"]
    """Shorter side resized, centre cropped."""
    text_ids: Int32[np.ndarray, "examples length"]
    """Token ids of the main caption, padded with 0."""
    is_valid: Bool[np.ndarray, "examples length"]
    """True for tokens, False for padding; all False for an example without a caption."""
    labels: Int32[np.ndarray, " examples"]
    """Index into `label_names`."""
    label_names: tuple[str, ...]
    """Classes, sorted by name unless they were given."""
    titles: tuple[str, ...]
    groups: Int32[np.ndarray, " examples"]
    """Numbers of near-duplicate groups: examples of one group belong on one side of any split.
    A record without a group is a group of its own.
    """
    captions: tuple[str, ...]
    """Main captions; empty for a record that has none."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def has_caption(self) -> Bool[np.ndarray, " examples"]:
        """True for examples with a caption that is not blank."""
        return np.array([bool(caption.strip()) for caption in self.captions], bool)

    def with_captions(self) -> "LabelledExamples":
        """Returns the examples that have a caption."""
        return self.take(np.flatnonzero(self.has_caption))

    def take(self, indices: Int[np.ndarray, " taken"]) -> "LabelledExamples":
        """Returns the examples at `indices`, in that order."""
        return LabelledExamples(
            images=self.images[indices],
            text_ids=self.text_ids[indices],
            is_valid=self.is_valid[indices],
            labels=self.labels[indices],
            label_names=self.label_names,
            titles=tuple(self.titles[index] for index in indices),
            groups=self.groups[indices],
            captions=tuple(self.captions[index] for index in indices),
        )


def read_labelled(
    shards: Shards,
    *,
    image_size: int,
    tokenizer: Tokenizer | None = None,
    text_length: int = 0,
    indices: Sequence[int] | None = None,
    label_names: tuple[str, ...] | None = None,
) -> LabelledExamples:
    """Reads labelled pairs or images; the same shards always give the same bits.

    Args:
        shards: Shards of labelled images.
        image_size: Side of the square images, pixels.
        tokenizer: Encodes the main captions; None marks all tokens as padding.
        text_length: Tokens of a caption; longer ones are cut, shorter ones padded.
        indices: Records to read, in this order; None reads all.
        label_names: Classes in their order, if known: those of the training examples, for test
            examples that may lack some.

    Raises:
        UserError: a record has no image that can be decoded, no label, or a label that is not in
            `label_names`.
    """
    indices = range(len(shards)) if indices is None else indices
    count, records = len(indices), [shards[index] for index in indices]
    for index, record in zip(indices, records, strict=True):
        require(
            bool(record.label_name) and bool(record.image),
            f"shards = {shards.pattern} hold a record without label or image "
            f"({shards.place(index)}). Name shards of labelled images.",
        )
    names = label_names or tuple(sorted({record.label_name for record in records}))
    unknown = sorted({record.label_name for record in records}.difference(names))
    require(
        not unknown,
        f"shards = {shards.pattern} hold the label {', '.join(unknown[:3])}, which is not among "
        f"the {len(names)} classes of the training examples. Name shards with the same classes.",
    )
    captions = tuple(record.captions[0] if record.captions else "" for record in records)
    text_ids = np.zeros((count, text_length), np.int32)
    is_valid = np.zeros((count, text_length), bool)
    if tokenizer is not None:
        text_ids, is_valid, _ = tokenizer.encode(captions, text_length)
    numbers = {name: number for number, name in enumerate(names)}
    with concurrent.futures.ThreadPoolExecutor() as pool:
        images = pool.map(
            lambda index, record: _decoded(record.image, image_size, shards.place(index)),
            indices,
            records,
        )
        return LabelledExamples(
            images=np.stack(list(images)),
            text_ids=text_ids,
            is_valid=is_valid,
            labels=np.array([numbers[record.label_name] for record in records], np.int32),
            label_names=names,
            titles=tuple(record.title for record in records),
            groups=_number_groups([record.group for record in records]),
            captions=captions,
        )


def _decoded(image: bytes, size: int, place: str) -> UInt8[np.ndarray, "size size 3"]:
    try:
        return resize_and_crop_center(decode_image(image), size)
    except ValueError as error:
        raise DataError(
            f"{place} holds an image that cannot be decoded ({str(error)[:100]}). Make the shards "
            "again, which leaves it out: python -m pipelines.prepare_data --kind=labelled."
        ) from None


def _number_groups(names: list[str]) -> Int32[np.ndarray, " records"]:
    """Returns a number for each record, equal for records of one group; "" names none."""
    numbers = {name: number for number, name in enumerate(sorted(set(names) - {""}))}
    alone = itertools.count(len(numbers))
    return np.array([numbers[name] if name else next(alone) for name in names], np.int32)
