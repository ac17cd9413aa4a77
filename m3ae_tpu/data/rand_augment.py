"""RandAugment (Cubuk et al. 2020): random operations on images, seeded by row."""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageEnhance, ImageOps

_PROBABILITY = 0.5
"""Probability that a drawn operation is done, as timm and MAE have it."""
_LARGEST = 10.0
"""The largest strength of an operation."""

type _Operation = Callable[[Image.Image, float, "_Context"], Image.Image]


@dataclasses.dataclass(frozen=True)
class _Context:
    """The direction and the colour that operations need beside image and strength."""

    sign: int
    """1 or -1: the direction of an operation that has two."""
    fill: tuple[int, int, int]
    """Colour of what lies outside of a moved image."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandAugment:
    """Draws and does operations, each equally likely; see `config.AugmentationConfig`."""

    num_operations: int
    magnitude: float
    """Mean strength, from 0 to 10."""
    deviation: float
    """Standard deviation of the strength."""
    fill: tuple[int, int, int]
    """Colour of what lies outside of a moved image, bytes."""

    def __call__(
        self, image: UInt8[np.ndarray, "height width 3"], key: tuple[int, int]
    ) -> UInt8[np.ndarray, "height width 3"]:
        """Returns the changed image: a pure function of image and key."""
        random = np.random.Generator(np.random.Philox(key=np.array(key, np.uint64)))
        changed = Image.fromarray(image)
        for _ in range(self.num_operations):
            # The same number of draws for every operation, done or not.
            which, done, sign = random.random(3)
            strength = random.normal(self.magnitude, self.deviation)
            if done < _PROBABILITY:
                context = _Context(1 if sign < 0.5 else -1, self.fill)
                operation = OPERATIONS[int(which * len(OPERATIONS))]
                changed = operation(changed, min(max(strength, 0.0), _LARGEST) / _LARGEST, context)
        return np.asarray(changed)


def _identity(image: Image.Image, strength: float, context: _Context) -> Image.Image:
    return image


def _auto_contrast(image: Image.Image, strength: float, context: _Context) -> Image.Image:
    return ImageOps.autocontrast(image)


def _equalize(image: Image.Image, strength: float, context: _Context) -> Image.Image:
    return ImageOps.equalize(image)


def _solarize(image: Image.Image, strength: float, context: _Context) -> Image.Image:
    return ImageOps.solarize(image, 256 - round(256 * strength))


def _posterize(image: Image.Image, strength: float, context: _Context) -> Image.Image:
    return ImageOps.posterize(image, max(1, 4 - int(4 * strength)))


def _color(image: Image.Image, strength: float, context: _Context) -> Image.Image:
    return ImageEnhance.Color(image).enhance(1 + context.sign * 0.9 * strength)


def _contrast(image: Image.Image, strength: float, context: _Context) -> Image.Image:
    return ImageEnhance.Contrast(image).enhance(1 + context.sign * 0.9 * strength)


def _brightness(image: Image.Image, strength: float, context: _Context) -> Image.Image:
    return ImageEnhance.Brightness(image).enhance(1 + context.sign * 0.9 * strength)


def _sharpness(image: Image.Image, strength: float, context: _Context) -> Image.Image:
    return ImageEnhance.Sharpness(image).enhance(1 + context.sign * 0.9 * strength)


def _rotate(image: Image.Image, strength: float, context: _Context) -> Image.Image:
    angle = math.radians(context.sign * 30 * strength)
    x, y = image.width / 2, image.height / 2
    cos, sin = math.cos(angle), math.sin(angle)
    return _moved(
        image, (cos, sin, x - x * cos - y * sin, -sin, cos, y + x * sin - y * cos), context
    )


def _shear_x(image: Image.Image, strength: float, context: _Context) -> Image.Image:
    return _moved(image, (1.0, context.sign * 0.3 * strength, 0.0, 0.0, 1.0, 0.0), context)


def _shear_y(image: Image.Image, strength: float, context: _Context) -> Image.Image:
    return _moved(image, (1.0, 0.0, 0.0, context.sign * 0.3 * strength, 1.0, 0.0), context)


def _translate_x(image: Image.Image, strength: float, context: _Context) -> Image.Image:
    distance = context.sign * 0.45 * strength * image.width
    return _moved(image, (1.0, 0.0, distance, 0.0, 1.0, 0.0), context)


def _translate_y(image: Image.Image, strength: float, context: _Context) -> Image.Image:
    distance = context.sign * 0.45 * strength * image.height
    return _moved(image, (1.0, 0.0, 0.0, 0.0, 1.0, distance), context)


def _moved(image: Image.Image, coefficients: tuple[float, ...], context: _Context) -> Image.Image:
    """Returns an image whose pixel (x, y) is that at (ax + by + c, dx + ey + f)."""
    return image.transform(
        image.size,
        Image.Transform.AFFINE,
        coefficients,
        Image.Resampling.BICUBIC,
        fillcolor=context.fill,
    )


OPERATIONS: tuple[_Operation, ...] = (
    _identity,
    _auto_contrast,
    _equalize,
    _rotate,
    _solarize,
    _color,
    _posterize,
    _contrast,
    _brightness,
    _sharpness,
    _shear_x,
    _shear_y,
    _translate_x,
    _translate_y,
)
"""The paper's fourteen; strengths from 0 to 1, all growing, as in timm's `rand-m9-mstd0.5-inc1`."""
