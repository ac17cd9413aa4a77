"""Labelled images in batches on a mesh, every one exactly once, with the test transform."""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from m3ae_tpu.data.crops import resize_and_crop_center
from m3ae_tpu.data.images import decode_image
from m3ae_tpu.data.shards import DamagedRecordError, Shards
from m3ae_tpu.parallel.mesh import by_example, num_batch_shards
from m3ae_tpu.parallel.row_map import ROWS_PER_DEVICE
from m3ae_tpu.parallel.share import global_batch, share_of

_LOG = logging.getLogger(__name__)
_CACHE_BYTES = 2**28
"""Images of a set that are kept between passes, if all of them fit: 256 MB."""


class LabelledBatch(NamedTuple):
    """A batch of a fixed number of rows; arrays lie on the mesh, over its devices."""

    images: Any
    """uint8 [rows, size, size, 3]."""
    labels: Any
    """int32 [rows]; -1 where the class is not known, or the row counts for nothing."""
    is_counted: Any
    """bool [rows]: False for rows that fill up the last batch, and for broken images."""
    ids: tuple[str, ...]
    """Ids of this process's rows; empty where nothing counts."""


class LabelledStream:
    """The labelled images of some records, read again in each pass or kept in memory.

    Each process reads the rows of its own devices.
    """

    def __init__(
        self,
        shards: Shards,
        indices: Sequence[int],
        *,
        classes: Sequence[str],
        image_size: int,
        mesh: Mesh,
    ):
        """Takes the records and the names of the classes.

        Args:
            shards: Labelled shards.
            indices: Those of the records.
            classes: Names, in the order of their numbers.
            image_size: Side of the square images, pixels.
            mesh: The devices that share the rows.
        """
        self._shards, self._indices, self._size = shards, indices, image_size
        self._numbers = {name: number for number, name in enumerate(classes)}
        self._sharding, self._share = by_example(mesh), share_of(mesh)
        self._num_rows = ROWS_PER_DEVICE * num_batch_shards(mesh)
        self._is_kept = len(indices) * image_size**2 * 3 <= _CACHE_BYTES
        self._kept: dict[int, tuple[np.ndarray | None, int, str]] = {}

    def __len__(self) -> int:
        """Returns the number of batches."""
        return -(-len(self._indices) // self._num_rows)

    def __iter__(self) -> Iterator[LabelledBatch]:
        size = self._num_rows // self._share.num_parts
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(self._indices), self._num_rows):
                rows = [
                    start + part * size + row for part in self._share.parts for row in range(size)
                ]
                yield self._batch(list(pool.map(self._read, rows)))

    def _batch(self, read: list[tuple[np.ndarray | None, int, str]]) -> LabelledBatch:
        blank = np.zeros((self._size, self._size, 3), np.uint8)
        images = np.stack([blank if image is None else image for image, _, _ in read])
        labels = np.array([label for _, label, _ in read], np.int32)
        is_counted = np.array([image is not None for image, _, _ in read])
        placed = global_batch(self._sharding, (images, labels, is_counted))
        images, labels, is_counted = placed
        return LabelledBatch(images, labels, is_counted, tuple(name for _, _, name in read))

    def _read(self, row: int) -> tuple[np.ndarray | None, int, str]:
        """Returns image, label and id of a row; no image where there is none, or it is broken."""
        if row >= len(self._indices):
            return None, -1, ""
        if row not in self._kept:
            read = self._read_record(self._indices[row])
            if not self._is_kept:
                return read
            self._kept[row] = read
        return self._kept[row]

    def _read_record(self, index: int) -> tuple[np.ndarray | None, int, str]:
        try:
            record = self._shards[index]
            image = resize_and_crop_center(decode_image(record.image), self._size)
        except (DamagedRecordError, ValueError) as error:
            _LOG.warning("%s is left out: %s", self._shards.place(index), error)
            return None, -1, ""
        return image, self._numbers.get(record.label_name, -1), record.id
