"""Guards RandAugment: a pure function of image and key, and operations that do what they say."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from m3ae_tpu.data import rand_augment
from m3ae_tpu.data.rand_augment import OPERATIONS, RandAugment

IMAGE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
FILL = (10, 20, 30)
AUGMENT = RandAugment(num_operations=2, magnitude=9.0, deviation=0.5, fill=FILL)


def apply(name, strength, sign=1):
    operation = getattr(rand_augment, f"_{name}")
    context = rand_augment._Context(sign, FILL)
    return np.asarray(operation(Image.fromarray(IMAGE), strength, context))


def test_the_same_key_gives_the_same_bits_and_others_give_others():
    once = [AUGMENT(IMAGE, (7, row)) for row in range(40)]
    for row, image in enumerate(once):
        assert image.dtype == np.uint8
        assert image.shape == IMAGE.shape
        np.testing.assert_array_equal(image, AUGMENT(IMAGE, (7, row)))
    assert len({image.tobytes() for image in once}) > 15
    assert AUGMENT(IMAGE, (8, 0)).tobytes() != AUGMENT(IMAGE, (7, 2**40)).tobytes()


def test_operations_are_drawn_alike_and_done_half_of_the_time():
    alone = RandAugment(num_operations=1, magnitude=9.0, deviation=0.0, fill=FILL)
    changed = [not np.array_equal(alone(IMAGE, (1, row)), IMAGE) for row in range(600)]
    # Half are done; of those the identity changes nothing.
    assert 0.38 < np.mean(changed) < 0.54
    assert len(OPERATIONS) == 14


@pytest.mark.parametrize(
    "name", [operation.__name__[1:] for operation in OPERATIONS if "identity" not in str(operation)]
)
def test_every_operation_but_the_identity_changes_an_image(name):
    changes = [not np.array_equal(apply(name, 0.9, sign), IMAGE) for sign in (1, -1)]
    assert any(changes) or name in ("auto_contrast",)  # Noise has all contrast already.


@pytest.mark.parametrize("name", ["rotate", "shear_x", "shear_y", "translate_x", "translate_y"])
def test_a_move_of_strength_zero_changes_nothing_and_what_comes_in_is_filled(name):
    np.testing.assert_array_equal(apply(name, 0.0), IMAGE)
    moved = apply(name, 1.0)
    assert (moved == np.array(FILL, np.uint8)).all(axis=2).any()


def test_a_translation_moves_by_its_share_of_the_width():
    moved = apply("translate_x", 0.25 / 0.45)  # 8 of 32 pixels.
    np.testing.assert_array_equal(moved[:, :24], IMAGE[:, 8:])


def test_colour_operations_are_pillows():
    image = Image.fromarray(IMAGE)
    np.testing.assert_array_equal(apply("equalize", 0.5), np.asarray(ImageOps.equalize(image)))
    np.testing.assert_array_equal(apply("solarize", 1.0), np.asarray(ImageOps.invert(image)))
    np.testing.assert_array_equal(apply("posterize", 0.5), IMAGE & 0xC0)
    assert apply("posterize", 1.0).any()
    assert apply("brightness", 1.0, -1).mean() < 0.2 * IMAGE.mean()


def test_more_magnitude_turns_further():
    def distance(strength):
        return np.abs(apply("brightness", strength).astype(int) - IMAGE).mean()

    assert 0 == distance(0.0) < distance(0.3) < distance(0.9)
