"""Random erasing: a box of an image is filled with noise (Zhong et al. 2017)."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

_AREA = (0.02, 1 / 3)
"""Smallest and largest share of the image."""
_LOG_ASPECT = (math.log(0.3), math.log(1 / 0.3))
_ATTEMPTS = 10
"""Boxes that are drawn until one fits; otherwise the image stays as it is."""


def erase(
    images: Float[Array, "batch height width 3"],
    keys: Key[Array, " batch"],
    probability: float,
) -> Float[Array, "batch height width 3"]:
    """Fills a box of some images with standard normal noise, pixel by pixel, as timm and MAE do.

    Args:
        images: Normalised.
        keys: One for each image: it depends on no other.
        probability: Share of the images that get a box.
    """
    return jax.vmap(lambda image, key: _erase(image, key, probability))(images, keys)


def _erase(
    image: Float[Array, "height width 3"], key: Key[Array, ""], probability: float
) -> Float[Array, "height width 3"]:
    done_key, size_key, place_key, noise_key = jax.random.split(key, 4)
    height, width = image.shape[:2]
    draws = jax.random.uniform(size_key, (2, _ATTEMPTS))
    area = (_AREA[0] + (_AREA[1] - _AREA[0]) * draws[0]) * (height * width)
    aspect = jnp.exp(_LOG_ASPECT[0] + (_LOG_ASPECT[1] - _LOG_ASPECT[0]) * draws[1])
    heights, widths = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))
    fits = (heights < height) & (widths < width)
    first = jnp.argmax(fits)
    is_done = (jax.random.uniform(done_key) < probability) & fits[first]
    places = jax.random.uniform(place_key, (2,))
    is_inside = [
        _is_between(total, places[axis], sizes[first])
        for axis, (total, sizes) in enumerate(((height, heights), (width, widths)))
    ]
    box = is_inside[0][:, None] & is_inside[1][None, :] & is_done
    noise = jax.random.normal(noise_key, image.shape, image.dtype)
    return jnp.where(box[:, :, None], noise, image)


def _is_between(total: int, draw: Float[Array, ""], size: Float[Array, ""]) -> Array:
    """Returns which of `total` places lie in an interval of `size` that the draw places."""
    start = jnp.floor(draw * (total - size + 1))
    places = jnp.arange(total, dtype=jnp.float32)
    return (places >= start) & (places < start + size)
