"""Settings of the data: where examples come from and how they are prepared."""

import dataclasses
from typing import Literal

from m3ae_tpu.config.checks import (
    require_choice,
    require_field,
    require_positive,
    require_within,
)

type Kind = Literal["paired", "image", "text"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """A set of shards of one kind, and its share of each batch."""

    kind: Kind = "paired"
    """Modalities that are used of each record: image and text (`paired`), or one of the two."""
    shards: str = "starter/train-*"
    """Glob of ArrayRecord shards; `starter/...` names the set that ships with the package."""
    weight: float = 1.0
    """Share of a batch's rows, relative to the other sources' weights."""
    text_length: int = 64
    """Tokens per text; longer texts are cut, shorter ones padded."""
    split: tuple[float, float] = (0.0, 1.0)
    """Range of the records to use, from start to end in shard order; (0, 0.25) is a quarter.
    Splits that only touch, as (0, 0.25) and (0.25, 1), share no record.
    """

    def __post_init__(self) -> None:
        require_choice(self, "kind")
        require_positive(self, "weight", "text_length")
        require_within(self, "(0, 1e15]", "weight")  # Sums of larger ones overflow.
        start, end = self.split
        require_field(self, "split", 0 <= start < end <= 1, "is not a range within [0, 1]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Sources of examples, and their preparation."""

    sources: tuple[SourceConfig, ...] = (SourceConfig(),)
    """Sets of shards; each batch holds a fixed number of rows of each."""
    tokenizer: str = "starter/tokenizer.model"
    """SentencePiece model; `starter/tokenizer.model` names the one that ships with the package."""
    image_size: int = 256
    """Side of the square crop that the model sees, pixels; a multiple of `model.patch_size`."""
    image_mean: tuple[float, float, float] = (0.5762, 0.5503, 0.5213)
    """Mean of the red, green and blue channel, on a scale of 0 to 1. Default: CC12M."""
    image_std: tuple[float, float, float] = (0.3207, 0.3169, 0.3307)
    """Standard deviation of the channels, on a scale of 0 to 1. Default: CC12M."""
    crop_area: tuple[float, float] = (0.2, 1.0)
    """Smallest and largest fraction of the image's area that a random crop keeps."""
    flip_probability: float = 0.5
    """Probability that an image is mirrored.
    Images whose text has a word of direction, such as "left", are never mirrored.
    """
    num_workers: int = 2
    """Processes that read and decode; with 0 the training process does. Batches are the same."""
    max_broken_fraction: float = 0.01
    """Largest fraction of a source's records that may be broken; with more the run stops."""
    timeout_seconds: float = 120.0
    """Longest wait for a batch. Then the run stops, as a worker process or the disk hangs."""

    def __post_init__(self) -> None:
        require_field(self, "sources", len(self.sources) >= 1, "has no set of shards", "Name one.")
        require_positive(self, "image_size")
        require_within(self, "(0, inf]", "timeout_seconds")
        require_within(self, "[0, 1]", "image_mean")
        # A channel that varies less has the same byte in all images.
        require_within(self, "[0.001, 1]", "image_std")
        smallest, largest = self.crop_area
        is_range = 0 < smallest <= largest <= 1
        require_field(self, "crop_area", is_range, "is not a range within (0, 1]")
        require_within(self, "[0, 1]", "flip_probability", "max_broken_fraction")
        require_within(self, "[0, inf)", "num_workers")
