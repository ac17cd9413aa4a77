"""Guards random crops, resizing and the test transform."""

import concurrent.futures

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from m3ae_tpu.data import crops
from m3ae_tpu.data.crops import (
    CROP_DRAWS,
    draw_crop,
    random_resized_crop,
    resize,
    resize_and_crop_center,
)
from m3ae_tpu.data.images import decode_image
from m3ae_tpu.data.shards import open_shards

AREA = (0.2, 1.0)


def draws(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(CROP_DRAWS)


def ramp(height: int = 40, width: int = 60) -> np.ndarray:
    """An image whose channels rise along its axes."""
    y, x = np.mgrid[:height, :width]
    return np.stack([y * 255 // height, x * 255 // width, (x + y) % 256], axis=-1).astype(np.uint8)


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_a_crop_lies_within_the_image(height, width, seed):
    left, top, right, bottom = draw_crop(height, width, AREA, draws(seed))
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height


def test_crops_have_the_area_and_aspect_of_the_paper():
    boxes = np.array([draw_crop(1000, 1000, AREA, draws(seed)) for seed in range(2000)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area, aspect = width * height / 1e6, width / height
    assert 0.199 < area.min() < 0.21
    assert 0.95 < area.max() <= 1
    assert 0.745 < aspect.min() < 0.76
    assert 1.31 < aspect.max() < 1.34
    assert abs(np.log(aspect).mean()) < 0.01
    assert abs(boxes[:, :2].mean() - (1000 - boxes[:, 2:].mean())) < 10


def test_an_image_too_long_for_any_crop_gives_its_centre():
    assert draw_crop(10, 1000, (1.0, 1.0), draws(0)) == (493, 0, 506, 10)


def pillow_resize(image: np.ndarray, size: int) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))


def with_fourth_byte(image: np.ndarray) -> np.ndarray:
    return np.dstack(
        [image, np.arange(image[..., 0].size).reshape(image.shape[:2]).astype(np.uint8)]
    )


def resized(image: np.ndarray, size: int) -> np.ndarray:
    out = np.zeros((size, size, 3), np.uint8)
    resize(with_fourth_byte(image), (0, 0, image.shape[1], image.shape[0]), out)
    return out


def cropped(image: np.ndarray, size: int, seed: int) -> np.ndarray:
    out = np.zeros((size, size, 3), np.uint8)
    random_resized_crop(with_fourth_byte(image), out, area=AREA, draws=draws(seed))
    return out


@pytest.mark.parametrize("box", [(5, 3, 45, 33), (20, 10, 60, 40), (0, 0, 60, 40), (7, 39, 8, 40)])
def test_no_pixel_outside_of_a_crop_takes_part(box):
    left, top, right, bottom = box
    got, expected = np.zeros((32, 32, 3), np.uint8), resized(ramp()[top:bottom, left:right], 32)
    resize(with_fourth_byte(ramp()), box, got)
    np.testing.assert_array_equal(got, expected)
    outside = np.full_like(ramp(), 255)
    outside[top:bottom, left:right] = ramp()[top:bottom, left:right]
    resize(with_fourth_byte(outside), box, got)
    np.testing.assert_array_equal(got, expected)


def test_a_random_crop_is_the_box_that_was_drawn():
    left, top, right, bottom = draw_crop(40, 60, AREA, draws(5))
    expected = resized(ramp()[top:bottom, left:right], 32)
    np.testing.assert_array_equal(cropped(ramp(), 32, seed=5), expected)


def test_threads_do_not_mix_their_crops_up():
    seeds = range(64)
    expected = [cropped(ramp(), 32, seed) for seed in seeds]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda seed: cropped(ramp(), 32, seed), seeds))
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("size", [24, 64, 96, 200])
def test_crops_are_resized_as_pillow_does_with_antialiasing(size):
    shards = open_shards("starter/train-*")
    errors = []
    for index in range(0, 3800, 50):
        image = decode_image(shards[index].image)
        left, top, right, bottom = draw_crop(image.shape[0], image.shape[1], AREA, draws(index))
        crop = image[top:bottom, left:right]
        errors.append(np.mean((resized(crop, size).astype(float) - pillow_resize(crop, size)) ** 2))
    decibels = 10 * np.log10(255**2 / np.maximum(errors, 1e-9))
    assert decibels.mean() >= 50
    assert decibels.min() >= 45


@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_any_crop_can_be_resized_to_any_size(height, width, size):
    image = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
    difference = np.abs(resized(image, size).astype(int) - pillow_resize(image, size))
    # In noise single pixels differ more: values are clipped between the two passes.
    assert difference.mean() <= 2


@pytest.mark.skipif(not crops._HAS_FAST_RESIZER, reason="there is no such wheel for this platform")
def test_every_processor_resizes_to_the_same_bits():
    from cykooz_resizer import CpuExtensions, ImageData, PixelType, Resizer

    image = np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)
    slowest = Resizer()
    slowest.cpu_extensions = CpuExtensions.none
    square = ImageData(64, 64, PixelType.U8x3)
    slowest.resize(ImageData(70, 90, PixelType.U8x3, image.tobytes()), square, crops._BICUBIC)
    assert square.get_buffer() == resized(image, 64).tobytes()


@pytest.mark.parametrize(("height", "width"), [(40, 60), (60, 40), (33, 100), (32, 32)])
def test_the_test_transform_keeps_the_middle(height, width):
    bar = np.zeros((height, width, 3), np.uint8)
    bar[height // 2 - 2 : height // 2 + 2, width // 2 - 2 : width // 2 + 2] = 255
    got = resize_and_crop_center(bar, 32)
    assert got.shape == (32, 32, 3)
    rows, columns = np.nonzero(got[..., 0] > 128)
    assert abs(rows.mean() - 15.5) <= 1
    assert abs(columns.mean() - 15.5) <= 1


def test_an_image_of_the_right_size_is_left_alone():
    np.testing.assert_array_equal(resize_and_crop_center(ramp(32, 32), 32), ramp(32, 32))
