"""Images as sequences of patches, and back."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def patchify(
    images: Float[Array, "batch height width channels"], patch_size: int
) -> Float[Array, "batch patches values"]:
    """Cuts images into square patches, row by row; values in the order (row, column, channel).

    Raises:
        ValueError: `patch_size` does not divide the height and the width.
    """
    batch, height, width, channels = images.shape
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"An image of {height} x {width} cannot be cut into patches of "
            f"{patch_size} x {patch_size}."
        )
    rows, columns = height // patch_size, width // patch_size
    x = images.reshape(batch, rows, patch_size, columns, patch_size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns, patch_size**2 * channels)


def unpatchify(
    patches: Float[Array, "batch patches values"], grid: tuple[int, int], patch_size: int
) -> Float[Array, "batch height width channels"]:
    """Puts patches of a (rows, columns) grid together again: the inverse of `patchify`."""
    rows, columns = grid
    batch, _, values = patches.shape
    x = patches.reshape(batch, rows, columns, patch_size, patch_size, values // patch_size**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * patch_size, columns * patch_size, -1)


def normalize_patches(
    patches: Float[Array, "batch patches values"],
) -> Float[Array, "batch patches values"]:
    """Gives every patch mean 0 and variance 1 over its own values (He et al. 2022, §4.1).

    The variance divides by n - 1, and 1e-6 is added to it, as the MAE code does.
    """
    mean, deviation = _moments(patches)
    return (patches - mean) / deviation


def denormalize_patches(
    patches: Float[Array, "batch patches values"], originals: Float[Array, "batch patches values"]
) -> Float[Array, "batch patches values"]:
    """Gives patches the mean and deviation of the originals: undoes `normalize_patches`."""
    mean, deviation = _moments(originals)
    return patches * deviation + mean


def _moments(
    patches: Float[Array, "batch patches values"],
) -> tuple[Float[Array, "batch patches 1"], Float[Array, "batch patches 1"]]:
    """Returns mean and deviation of each patch over its own values."""
    mean = patches.mean(axis=-1, keepdims=True)
    variance = patches.var(axis=-1, keepdims=True, ddof=1)
    return mean, jnp.sqrt(variance + 1e-6)
