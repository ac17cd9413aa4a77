"""Errors of images that cannot be decoded, whatever their decoder raised."""

import contextlib
from collections.abc import Iterator

from PIL import Image


class ImageSizeError(ValueError):
    """An image without pixels, or with more than a crop could use."""


class ColorError(ValueError):
    """An image whose pixel values do not say which colours they are."""


@contextlib.contextmanager
def damage_as_value_error() -> Iterator[None]:
    """Turns a decoder's errors over damaged files into `ValueError`, over bombs `ImageSizeError`.

    Decoders raise OSError, SyntaxError, KeyError, TypeError, struct.error and others. A lack of
    memory is not damage and passes.
    """
    try:
        yield
    except (ImageSizeError, ColorError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise ImageSizeError(str(error)) from error
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
