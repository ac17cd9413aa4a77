"""Images of any form as the model takes them: resized and cropped, in bytes."""

import os
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from m3ae_tpu.data.crops import resize_and_crop_center
from m3ae_tpu.data.images import decode_upright
from m3ae_tpu.errors import UserError, require

type ImageLike = str | os.PathLike[str] | bytes | Image.Image | np.ndarray
"""Path of a file, its content, a Pillow image, or uint8 [height, width, 3]."""


def several[Example](
    name: str, examples: Sequence[Example] | np.ndarray | None
) -> list[Example] | None:
    """Returns examples as a list; None for None.

    Raises:
        UserError: they are one example, not in a list.
    """
    require(
        not isinstance(examples, str | bytes | os.PathLike | Image.Image),
        f"{name} = {repr(examples)[:60]} is one, not several. Give a list: {name}=[...].",
    )
    return None if examples is None else list(examples)


def make_images(images: Sequence[ImageLike], size: int) -> UInt8[np.ndarray, "images size size 3"]:
    """Decodes images, turns them upright, resizes the shorter side, and crops the centre.

    Raises:
        UserError: an image that cannot be read, named by its path or number.
    """
    return np.stack(
        [
            resize_and_crop_center(_pixels(image, number), size)
            for number, image in enumerate(images)
        ]
    )


def _pixels(image: ImageLike, number: int) -> UInt8[np.ndarray, "height width 3"]:
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise UserError(
                f"images[{number}] is an array {image.dtype} {list(image.shape)}. "
                "Give uint8 [height, width, 3], red, green and blue from 0 to 255."
            )
        return image
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))
    name = f"images[{number}]" if isinstance(image, bytes) else os.fspath(image)
    try:
        return decode_upright(
            image if isinstance(image, bytes) else pathlib.Path(image).read_bytes()
        )
    except OSError as error:
        raise UserError(f"{name} cannot be read ({error.strerror}). Check the path.") from None
    except ValueError as error:
        raise UserError(
            f"{name} is not an image that can be read ({error}). Leave it out, or convert it."
        ) from None
