"""Settings of the data: where examples come from and how they are prepared."""

import dataclasses
import math
from typing import Literal, get_args

from m3ae_tpu.errors import require

type Kind = Literal["paired", "image", "text"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """A set of shards of one kind, and its share of each batch."""

    kind: Kind = "paired"
    """`paired` gives images with captions, `image` images alone, `text` texts alone."""
    shards: str = "starter/train-*"
    """Glob of ArrayRecord shards; `starter/...` names the set that ships with the package."""
    weight: float = 1.0
    """Share of a batch's rows, relative to the other sources' weights."""
    text_length: int = 64
    """Tokens of a text; longer ones are cut, shorter ones padded."""
    part: tuple[float, float] = (0.0, 1.0)
    """Which of the shards' records, from share to share in their order. The same shards as `paired`
    with (0, 0.25), as `image` and as `text` with (0.25, 1) leave a quarter of the pairs together.
    """

    def __post_init__(self) -> None:
        require(
            0 <= self.part[0] < self.part[1] <= 1,
            f"part = {self.part} of source {self.shards} is no range within [0, 1]. Set (0.0, 1.0) for all records.",
        )
        kinds = get_args(Kind.__value__)
        has_weight = 0 < self.weight < math.inf
        require(
            self.kind in kinds, f"kind = {self.kind} of source {self.shards} is none of {kinds}."
        )
        require(
            has_weight,
            f"weight = {self.weight} of source {self.shards} is no positive number. Set 1.",
        )
        require(self.text_length >= 1, f"text_length = {self.text_length} is not positive. Set 64.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where examples come from and how they are prepared."""

    sources: tuple[SourceConfig, ...] = (SourceConfig(),)
    """Shard sets of which each batch holds a fixed number of rows."""
    tokenizer: str = "starter/tokenizer.model"
    """SentencePiece model; `starter/tokenizer.model` names the one that ships with the package."""
    image_size: int = 256
    """Side of the square crop that the model sees, pixels; a multiple of `model.patch_size`."""
    image_mean: tuple[float, float, float] = (0.5762, 0.5503, 0.5213)
    """Mean of the red, green and blue channel, on a scale of 0 to 1. Default: CC12M."""
    image_std: tuple[float, float, float] = (0.3207, 0.3169, 0.3307)
    """Standard deviation of the channels, on a scale of 0 to 1. Default: CC12M."""
    crop_area: tuple[float, float] = (0.2, 1.0)
    """Smallest and largest share of the image that a random crop keeps."""
    flip_probability: float = 0.5
    """Chance that an image without text or direction words is mirrored; see `data/images.py`."""
    num_workers: int = 2
    """Processes that read and decode; 0 does it in the training process. Changes no bit."""
    max_broken_fraction: float = 0.01
    """Share of a source's records that may be broken before the run stops; 0 stops at the first
    one.
    """
    timeout_seconds: float = 120.0
    """A run that waits for a batch for so long stops: a worker hangs, or the disk."""

    def __post_init__(self) -> None:
        require(
            self.image_size >= 1, f"data.image_size = {self.image_size} is not positive. Set 256."
        )
        require(len(self.sources) >= 1, "data.sources is empty. Name at least one set of shards.")
        require(
            all(deviation > 0 for deviation in self.image_std),
            f"data.image_std = {self.image_std} is not positive throughout. Set (0.3207, 0.3169, 0.3307).",
        )
        require(
            0 < self.crop_area[0] <= self.crop_area[1] <= 1,
            f"data.crop_area = {self.crop_area} is no range within (0, 1]. Set (0.2, 1.0).",
        )
        require(
            0 <= self.flip_probability <= 1,
            f"data.flip_probability = {self.flip_probability} is not in [0, 1]. Set 0.5.",
        )
        require(
            0 <= self.max_broken_fraction <= 1,
            f"data.max_broken_fraction = {self.max_broken_fraction} is not in [0, 1]. Set 0.01.",
        )
        require(
            self.timeout_seconds > 0,
            f"data.timeout_seconds = {self.timeout_seconds} is not positive. Set 120.",
        )
        require(
            self.num_workers >= 0,
            f"data.num_workers = {self.num_workers} is negative. Set 0 or more.",
        )
