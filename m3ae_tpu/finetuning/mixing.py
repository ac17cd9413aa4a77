"""Mixup and cutmix: images of a batch are combined in pairs, and so are their targets."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from m3ae_tpu.config import AugmentationConfig


class Mixture(NamedTuple):
    """The way in which two images become one; the same for all pairs of a batch."""

    weight: Float[Array, "height width"]
    """Share of the own image in each pixel; the rest is the partner's."""

    @property
    def share(self) -> Float[Array, ""]:
        """Share of the own image, and so of its class."""
        return self.weight.mean()

    def __call__(self, own: Float[Array, "batch height width 3"]) -> Float[Array, "batch _ _ 3"]:
        """Combines each image with the one half a batch further on."""
        weight = self.weight.astype(own.dtype)[None, :, :, None]
        return own * weight + partners(own) * (1 - weight)


def partners(rows: Array) -> Array:
    """Returns the rows half a batch further on.

    A row has the same partner whatever number of devices and of micro-batches a batch has: row r of
    2n lies in the micro-batch of row r + n.
    """
    return jnp.roll(rows, len(rows) // 2, axis=0)


def draw_mixture(
    key: Key[Array, ""], shape: tuple[int, int], config: AugmentationConfig
) -> Mixture:
    """Draws how the images of a batch are combined, once for all of them, as timm and MAE do.

    Args:
        key: The step's.
        shape: Height and width of the images, pixels.
        config: Parameters of the two; with both on, each is drawn with probability 0.5.
    """
    choice_key, mixup_key, cutmix_key = jax.random.split(key, 3)
    ones, zero = jnp.ones(shape), jnp.zeros(())
    mixed = ones
    if config.mixup_alpha > 0:
        alpha = jnp.float32(config.mixup_alpha)
        mixed = ones * jax.random.beta(mixup_key, alpha, alpha)
    if config.cutmix_alpha > 0:
        cut = _outside_of_box(cutmix_key, shape, config.cutmix_alpha)
        is_mixup = jax.random.uniform(choice_key) < 0.5
        mixed = jnp.where(is_mixup, mixed, cut) if config.mixup_alpha > 0 else cut + zero
    return Mixture(mixed)


def _outside_of_box(
    key: Key[Array, ""], shape: tuple[int, int], alpha: float
) -> Float[Array, "height width"]:
    """Returns 0 in a random box and 1 outside of it (Yun et al. 2019).

    Its area is a share from Beta(alpha, alpha), less what lies outside of the image.
    """
    share_key, centre_key = jax.random.split(key)
    side = jnp.sqrt(jax.random.beta(share_key, jnp.float32(alpha), jnp.float32(alpha)))
    centre = jax.random.uniform(centre_key, (2,))
    is_inside = [_is_near(size, centre[axis], side) for axis, size in enumerate(shape)]
    box = is_inside[0][:, None] & is_inside[1][None, :]
    return jnp.where(box, 0.0, 1.0)


def _is_near(size: int, centre: Float[Array, ""], side: Float[Array, ""]) -> Array:
    """Returns which of `size` places lie in an interval; both numbers are shares of `size`."""
    places = (jnp.arange(size, dtype=jnp.float32) + 0.5) / size
    return jnp.abs(places - centre) < side / 2


def mixed_targets(
    labels: Int[Array, " batch"], num_classes: int, share: Float[Array, ""], smoothing: float
) -> Float[Array, "batch classes"]:
    """Returns the target of each row: its class and its partner's, smoothed.

    Args:
        labels: Numbers of the rows' classes.
        num_classes: Classes.
        share: The own class's.
        smoothing: Share that all classes have alike (Szegedy et al. 2016).
    """
    own = jax.nn.one_hot(labels, num_classes)
    mixed = own * share + partners(own) * (1 - share)
    return mixed * (1 - smoothing) + smoothing / num_classes
