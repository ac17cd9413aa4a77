"""Options of a preparation. The flags of `prepare_data` are made of these fields."""

import dataclasses
import re
from typing import Literal, get_args

from m3ae_tpu.errors import require
from m3ae_tpu.files import is_unicode

type SampleKind = Literal["paired", "image", "text", "labelled"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class CleaningOptions:
    """Conditions that a sample must meet to become a record."""

    kind: SampleKind = "paired"
    """Content of an example: image and caption, image, text, or image and class, the last
    with captions where there are any. The rest of a sample is left out.
    """
    max_shorter_side: int = 0
    """Larger images are resized to this shorter side, pixels; 0 keeps every size."""
    min_shorter_side: int = 8
    """Images with a smaller shorter side are dropped, pixels."""
    max_pixels: int = 64_000_000
    """Images of more pixels are dropped before they are decoded."""
    min_caption_characters: int = 1
    """Shorter texts are dropped."""
    max_caption_characters: int = 20_000
    """Longer texts are dropped."""
    license: str = ""
    """Terms of use, written to every record."""

    def __post_init__(self) -> None:
        kinds = get_args(SampleKind.__value__)
        require(
            self.kind in kinds, f"--kind = {self.kind} is none of {', '.join(kinds)}. Choose one."
        )
        require(
            self.min_shorter_side >= 1,
            f"--min_shorter_side = {self.min_shorter_side} is not positive. Set 8.",
        )
        require(
            self.max_shorter_side == 0 or self.max_shorter_side >= self.min_shorter_side,
            f"--max_shorter_side = {self.max_shorter_side} is less than --min_shorter_side = "
            f"{self.min_shorter_side}. "
            f"Set 0 to keep every size, or {self.min_shorter_side} or more.",
        )
        require(
            is_unicode(self.license),
            f"--license = {self.license!a} is not UTF-8. Write it in plain letters.",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """Form of the set of shards that a collection becomes."""

    cleaning: CleaningOptions = dataclasses.field(default_factory=CleaningOptions)
    """Conditions for records."""
    name: str = "train"
    """Start of the shards' file names."""
    seed: int = 0
    """Decides the order of the records."""
    num_shards: int = 0
    """Shards; 0 takes as many as --shard_megabytes asks for."""
    shard_megabytes: int = 256
    """Size of a shard, in units of 10^6 bytes."""
    drop_duplicates: bool = False
    """Keep one of several examples with the same content."""

    def __post_init__(self) -> None:
        require(
            0 <= self.num_shards <= 99_999,
            f"--num_shards = {self.num_shards} is not in 0 to 99999. Set 0.",
        )
        require(
            self.shard_megabytes >= 1,
            f"--shard_megabytes = {self.shard_megabytes} is not positive. Set 256.",
        )
        require(
            re.fullmatch(r"[A-Za-z0-9_.-]{1,100}", self.name) is not None and self.name[0] != ".",
            f"--name = {self.name[:60]!a} is not a file name of up to 100 letters, digits, "
            "'_', '.', '-'. Set train.",
        )
