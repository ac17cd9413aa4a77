"""Guards the decoding of images of every format that is read."""

import io

import numpy as np
import pytest
from PIL import Image

from m3ae_tpu.data.images import decode_image


def ramp(height: int = 40, width: int = 60) -> np.ndarray:
    """An image whose channels rise along its axes."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y * 255 // height, x * 255 // width, (x + y) % 256], axis=-1).astype(np.uint8)


def encoded(image: Image.Image | np.ndarray, format: str, **options) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(
        file, format, **options
    )
    return file.getvalue()


@pytest.mark.parametrize(
    ("format", "options"), [("PNG", {}), ("WEBP", {"lossless": True}), ("BMP", {})]
)
def test_lossless_formats_are_read_exactly(format, options):
    np.testing.assert_array_equal(decode_image(encoded(ramp(), format, **options)), ramp())


def test_jpeg_is_read_as_pillow_reads_it_to_rounding():
    data = encoded(ramp(), "JPEG", quality=90, subsampling=0)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), np.int32)
    # Two versions of libjpeg-turbo may round the colour conversion differently.
    assert np.abs(decode_image(data) - expected).max() <= 2


def test_grey_becomes_three_equal_channels():
    grey = ramp()[..., 0]
    np.testing.assert_array_equal(decode_image(encoded(grey, "PNG")), np.stack([grey] * 3, axis=-1))


def test_sixteen_bit_grey_is_scaled_not_clipped():
    grey = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    np.testing.assert_array_equal(
        decode_image(encoded(grey, "PNG"))[..., 0].ravel(), np.arange(256)
    )


def test_transparent_parts_become_white():
    clear = np.dstack([ramp(), np.zeros((40, 60), np.uint8)])
    clear[:20, :, 3] = 255
    decoded = decode_image(encoded(clear, "PNG"))
    np.testing.assert_array_equal(decoded[:20], ramp()[:20])
    assert np.all(decoded[20:] == 255)


@pytest.mark.parametrize("keep", [0, 10, 0.6])
@pytest.mark.parametrize("format", ["JPEG", "WEBP", "PNG"])
def test_a_damaged_image_is_an_error_not_a_grey_area(format, keep):
    data = encoded(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), format)
    with pytest.raises(ValueError, match=": "):
        decode_image(data[: int(len(data) * keep) if keep < 1 else keep])


def test_whatever_a_decoder_fails_with_is_a_value_error():
    jpeg = bytearray(encoded(ramp(), "JPEG"))
    jpeg[jpeg.index(b"\xff\xc0") + 11] = (
        0x14  # A subsampling that simplejpeg has no name for: KeyError.
    )
    tiff = encoded(ramp(), "TIFF")
    # An entry of another type in its directory: TypeError, SyntaxError, ...
    directory = int.from_bytes(tiff[4:8], "little")
    damaged = [
        tiff[: directory + 4 + 12 * n] + b"\7\0" + tiff[directory + 6 + 12 * n :] for n in range(8)
    ]
    failed = 0
    for data in (bytes(jpeg), *damaged):
        try:
            decode_image(data)
        except ValueError:
            failed += 1
    assert failed > 4


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.linspace(0, 1, 64, dtype=np.float32), "fractions"),
        (np.linspace(0, 2**20, 64, dtype=np.int32), "more than 16 bits"),
    ],
)
def test_pixels_of_no_known_scale_are_refused(pixels, message):
    with pytest.raises(ValueError, match=message):
        decode_image(encoded(pixels.reshape(8, 8), "TIFF"))


def test_a_huge_image_is_refused_before_it_is_decoded():
    with pytest.raises(ValueError, match="image of 9000 x 9000 pixels"):
        decode_image(encoded(Image.new("1", (9000, 9000)), "PNG"))


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "PNG"])
def test_a_fourth_byte_changes_no_colour(format):
    data = encoded(ramp(), format)
    decoded = decode_image(data, "RGBX")
    assert decoded.shape == (40, 60, 4)
    np.testing.assert_array_equal(decoded[..., :3], decode_image(data))
