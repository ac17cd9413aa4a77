"""The model's inputs: normalised images, mirrored where the batch says so, and texts."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, UInt8

from m3ae_tpu.batch import Rows
from m3ae_tpu.config import DataConfig


class Inputs(NamedTuple):
    """Whole examples: images, texts, or both."""

    images: Float[Array, "batch height width 3"] | None = None
    """Normalised pixels; sides are multiples of the patch size."""
    text_ids: Int[Array, "batch length"] | None = None
    """int32, padded at the end."""
    is_valid: Bool[Array, "batch length"] | None = None
    """True for tokens, False for padding; None beside a text: all are tokens."""


@dataclasses.dataclass(frozen=True)
class Normalizer:
    """Gives the channels of images about mean 0 and standard deviation 1."""

    mean: tuple[float, float, float]
    """Means of red, green and blue, on a scale of 0 to 1."""
    std: tuple[float, float, float]

    @classmethod
    def of_data(cls, config: DataConfig) -> "Normalizer":
        """Returns the normaliser of a run's images."""
        return cls(config.image_mean, config.image_std)

    def __call__(
        self, images: UInt8[Array, "batch height width 3"], dtype: DTypeLike
    ) -> Float[Array, "batch height width 3"]:
        """Computes (image / 255 - mean) / std."""
        scale = jnp.asarray([1 / (255 * std) for std in self.std], dtype)
        offset = jnp.asarray(
            [mean / std for mean, std in zip(self.mean, self.std, strict=True)], dtype
        )
        return images.astype(dtype) * scale[None, None, None] - offset[None, None, None]

    def undo(
        self, images: Float[Array, "batch height width 3"]
    ) -> Float[Array, "batch height width 3"]:
        """Returns normalised images on a scale of 0 to 1, not clipped."""
        std, mean = (jnp.asarray(values, images.dtype) for values in (self.std, self.mean))
        return images * std[None, None, None] + mean[None, None, None]


def make_inputs(rows: Rows, normalizer: Normalizer, dtype: DTypeLike) -> Inputs:
    """Returns the inputs of a batch's rows: mirrors and normalises images, passes texts on.

    Args:
        rows: Rows of one kind; without `is_flipped` no image is mirrored.
        normalizer: The run's normaliser of images.
        dtype: Dtype of the normalised images; float32 or wider keeps all bits of a byte.
    """
    images = rows.images
    if images is not None:
        if rows.is_flipped is not None:
            images = jnp.where(rows.is_flipped[:, None, None, None], images[:, :, ::-1], images)
        images = normalizer(images, dtype)
    return Inputs(images, rows.text_ids, rows.is_valid)
