"""Guards the decoding of images of every format that is read."""

import concurrent.futures
import io

import numpy as np
import pytest
from PIL import Image

from m3ae_tpu.data.images import decode_image
from m3ae_tpu.data.pixel_memory import PixelMemory


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


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "PNG"])
@pytest.mark.parametrize("width", [60, 61])
def test_memory_that_is_used_again_changes_no_pixel(format, width):
    memory = PixelMemory()
    for height in (40, 90, 33):  # The second needs more memory, the third less.
        data = encoded(ramp(height, width), format)
        for channels in ("RGB", "RGBX"):
            decoded = decode_image(data, channels, memory)
            np.testing.assert_array_equal(decoded, decode_image(data, channels))


def test_memory_that_is_used_again_shows_nothing_of_an_image_before_in_a_damaged_one():
    memory, data = PixelMemory(), encoded(ramp(), "JPEG")
    decode_image(data, "RGB", memory)
    with pytest.raises(ValueError, match=": "):
        decode_image(data[: len(data) // 2], "RGB", memory)


def test_memory_that_is_used_again_is_not_written_past_the_cache():
    memory = PixelMemory()
    for num_bytes in (1_000, 600_000, 3):
        assert memory.take(num_bytes).ctypes.data % 16 == 4


def test_a_thread_does_not_keep_the_memory_of_a_huge_image():
    memory = PixelMemory()
    small = memory.take(1_000)
    assert memory.take(2**25).size == 2**25
    assert np.shares_memory(memory.take(1_000), small)


def test_threads_share_no_memory():
    memory = PixelMemory()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        others = pool.submit(memory.take, 1_000).result()
    assert not np.shares_memory(memory.take(1_000), others)
