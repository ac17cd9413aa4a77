"""Decoding of examples in batches, ahead of the encoder, and the rows that are made of them."""

import concurrent.futures
import dataclasses
import itertools
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from m3ae_tpu.batch import Rows
from m3ae_tpu.data.crops import resize_and_crop_center
from m3ae_tpu.features.examples import FIT, Example, Place
from m3ae_tpu.prepare.cleaning import Unfit, decode_fit_image
from m3ae_tpu.prepare.samples import Fault
from m3ae_tpu.pretrained.pretrained import Pretrained

_NUM_THREADS = 16


class Decoded(NamedTuple):
    """An example with its image resized and cropped."""

    stop: Place
    example: Example
    """With a fault if the image cannot be decoded."""
    image: np.ndarray | None
    """uint8 [size, size, 3]; None without one."""


def decoded(
    taken: Iterable[tuple[Place, Example]], image_size: int, batch_size: int
) -> Iterator[list[Decoded]]:
    """Yields the examples in batches of `batch_size` or fewer, the next one decoded meanwhile."""

    def decode(placed: tuple[Place, Example]) -> Decoded:
        place, example = placed
        if not example.image:
            return Decoded(place, example, None)
        try:
            pixels, _ = decode_fit_image(example.image, FIT)
        except Unfit as unfit:
            broken = Example(place=example.place, fault=Fault(*unfit.fault))
            return Decoded(place, broken, None)
        image = resize_and_crop_center(pixels, image_size)
        return Decoded(place, dataclasses.replace(example, image=b""), image)

    source = iter(taken)
    with (
        concurrent.futures.ThreadPoolExecutor(min(_NUM_THREADS, os.cpu_count() or 1)) as pool,
        warnings.catch_warnings(),
    ):
        # Cleaning silences Pillow by itself, which threads must not do at the same time.
        warnings.simplefilter("ignore")

        def submitted() -> list[concurrent.futures.Future[Decoded]]:
            return [pool.submit(decode, placed) for placed in itertools.islice(source, batch_size)]

        batch = submitted()
        while batch:
            following = submitted()
            yield [future.result() for future in batch]
            batch = following


def make_rows(model: Pretrained, batch: Sequence[Decoded]) -> tuple[Rows, int]:
    """Returns the rows of good examples of one kind, and the number of texts that are cut."""
    rows, cut = Rows(), 0
    images = [each.image for each in batch if each.image is not None]
    if images:
        rows = rows._replace(images=np.stack(images))
    if batch[0].example.text:
        texts = [each.example.text for each in batch]
        ids, is_valid, cut = model.require_tokenizer().encode(texts, model.text_length)
        rows = rows._replace(text_ids=ids, is_valid=is_valid)
    return rows, cut
