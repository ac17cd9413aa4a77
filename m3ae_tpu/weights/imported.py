"""Models as the readers of other formats return them, and what these readers share."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from m3ae_tpu.config import (
    DataConfig,
    Kind,
    ModelConfig,
    PretrainConfig,
    SourceConfig,
    TransformerConfig,
)
from m3ae_tpu.errors import UserError, require
from m3ae_tpu.model.positions import image_positions
from m3ae_tpu.weights.matching import Line
from m3ae_tpu.weights.parameters import Arrays
from m3ae_tpu.weights.tensors import Tensors

type Rgb = tuple[float, float, float]

IMAGENET: tuple[Rgb, Rgb] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of ImageNet's channels, by which MAE is trained."""
HALF: tuple[Rgb, Rgb] = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
"""The same of Google's ViTs, and the default of timm and transformers."""

NO_DECODER = TransformerConfig(num_layers=0, width=512, num_heads=16)
"""The decoder of a model that has none."""

_HEADS = {192: 3, 384: 6, 512: 16, 768: 12, 1024: 16, 1280: 16}
"""Attention heads of the published encoders, and of MAE's decoder, by width."""


class Choices(NamedTuple):
    """Facts that a user gives where a source lacks them; None: it is left to the source."""

    num_heads: int | None = None
    decoder_num_heads: int | None = None
    image_mean: Rgb | None = None
    image_std: Rgb | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Imported:
    """A model of another library as one of ours."""

    config: PretrainConfig
    arrays: Arrays
    """Parameters by dotted name, float32."""
    lines: list[Line]
    """The fate of every tensor."""
    remarks: list[str]
    """Assumptions where the source says nothing: a sentence each."""
    step: int = 0
    """Steps of the training; 0 if unknown."""


def model_folder_config(
    model: ModelConfig,
    *,
    image_size: int,
    statistics: tuple[Rgb, Rgb],
    kinds: dict[Kind, int] | None = None,
    **changes: Any,
) -> PretrainConfig:
    """Returns the config of an imported model.

    Args:
        model: Its sizes.
        image_size: Side of its images, pixels.
        statistics: Mean and standard deviation of its images' channels.
        kinds: Kinds of examples that it has learned from, with the tokens of a text; default:
            images alone.
        changes: Other fields.
    """
    sources = tuple(
        SourceConfig(kind=kind, shards="", text_length=length)
        for kind, length in (kinds or {"image": 64}).items()
    )
    data = DataConfig(
        sources=sources,
        image_size=image_size,
        image_mean=statistics[0],
        image_std=statistics[1],
    )
    return PretrainConfig(model=model, data=data, **changes)


def statistics_of(
    given: tuple[Any, Any] | None, default: tuple[Rgb, Rgb], choices: Choices, remarks: list[str]
) -> tuple[Rgb, Rgb]:
    """Returns mean and standard deviation of a source's images.

    Args:
        given: As the source has them; None: it has none.
        default: What its kind usually has.
        choices: The user's, which come first.
        remarks: Gets a sentence where the default is taken.

    Raises:
        UserError: the source's are not three numbers each.
    """
    mean, std = given or default
    if given is None and (choices.image_mean is None or choices.image_std is None):
        remarks.append(
            f"The source does not say mean and standard deviation of its images; taken: {mean} "
            f"and {std}. Set --image_mean and --image_std where that is wrong."
        )
    return (
        choices.image_mean or _rgb("mean", mean),
        choices.image_std or _rgb("std", std),
    )


def heads_of(width: int, given: Any, choice: int | None, flag: str, remarks: list[str]) -> int:
    """Returns the number of attention heads of a stack.

    Args:
        width: Channels of a token.
        given: As the source has it; None: it does not.
        choice: The user's, which comes first.
        flag: The user's flag, for messages.
        remarks: Gets a sentence where a published model's number is taken.

    Raises:
        UserError: the number is unknown, or does not divide the width.
    """
    heads = choice or given
    if heads is None and width in _HEADS:
        heads = _HEADS[width]
        remarks.append(
            f"The source does not say its number of attention heads; taken: {heads}, as published "
            f"models of width {width} have. Set {flag} where that is wrong."
        )
    if heads is None:
        raise UserError(
            f"The source does not say how many attention heads its width of {width} has, and no "
            f"published model is so wide. Say it: {flag}=N."
        )
    is_divisor = isinstance(heads, int) and heads > 0 and width % heads == 0
    require(is_divisor, f"{flag} = {heads} does not divide the width {width}. Set another number.")
    return heads


def mlp_ratio_of(hidden: int, width: int) -> int:
    """Returns the hidden channels of an MLP in units of the width.

    Raises:
        UserError: they are not a multiple of it.
    """
    require(
        hidden > 0 and hidden % width == 0,
        f"The source's MLPs have {hidden} channels, which is not a multiple of the width {width}. "
        "Such a model cannot be imported.",
    )
    return hidden // width


def side_of(num_patches: int) -> int:
    """Returns the rows of a square grid of patches.

    Raises:
        UserError: the number is not a square.
    """
    side = math.isqrt(max(num_patches, 0))
    require(
        num_patches > 0 and side**2 == num_patches,
        f"The source has positions of {num_patches} patches, which is not a square number. "
        "Only square images can be imported.",
    )
    return side


def require_rgb(projection: tuple[int, ...]) -> None:
    """Refuses models of other images than RGB.

    Args:
        projection: Shape of the convolution that embeds patches [width, channels, patch, patch].

    Raises:
        UserError: it takes another number of channels.
    """
    require(projection[1] == 3, f"num_channels = {projection[1]}. Only RGB models can be imported.")


def require_square(name: str, size: Any) -> None:
    """Refuses models of images that are not square: their positions may fit a square by chance.

    Args:
        name: The field, for messages.
        size: As the source has it: pixels, height and width, or None where it does not say them.

    Raises:
        UserError: height and width differ.
    """
    sides = set(size) if isinstance(size, list | tuple) else {size}
    require(len(sides) == 1, f"{name} = {size} is not square. Only square images can be imported.")


def is_computed(table: np.ndarray) -> bool:
    """Returns whether a table [1, 1 + patches, width] is bit for bit the one that we compute."""
    side, width = side_of(table.shape[1] - 1), table.shape[2]
    computed = image_positions((side, side), width).astype(np.float32)
    return not table[0, 0].any() and np.array_equal(table[0, 1:], computed)


def computed_tables(tensors: Tensors, names: Iterable[str]) -> dict[str, str]:
    """Returns the position tables that equal the ones that we compute, with a remark for each.

    They need not be stored, and then fit any image size.
    """
    return {
        name: "the same codes are computed"
        for name in names
        if name in tensors and is_computed(tensors[name])
    }


def _rgb(name: str, value: Any) -> Rgb:
    values: list[Any] = list(value) if isinstance(value, list | tuple) else []
    is_rgb = len(values) == 3 and all(isinstance(each, int | float) for each in values)
    require(is_rgb, f"The source's {name} = {value} is not three numbers. Set --image_{name}.")
    return (float(values[0]), float(values[1]), float(values[2]))
