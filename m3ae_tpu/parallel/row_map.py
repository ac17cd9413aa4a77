"""Functions of rows, computed on all devices of a mesh."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import PyTree

from m3ae_tpu.parallel.mesh import by_example, num_batch_shards
from m3ae_tpu.parallel.share import as_numpy, known_batch

ROWS_PER_DEVICE = 64
"""Rows that a device computes at a time.

Fixed, so that every device runs the same program, and rows have the same results, on any mesh.
"""


class RowMap:
    """A function of rows, compiled once for a mesh and applied to any number of them."""

    def __init__(
        self,
        function: Callable[[PyTree, PyTree], PyTree],
        mesh: Mesh,
        *,
        rows_per_device: int = ROWS_PER_DEVICE,
    ):
        """Jits a function for a mesh.

        Args:
            function: Takes a tree that lies on the mesh in any way (a model), and a tree of arrays
                by row; returns a tree of arrays by row. No row's result may depend on other rows.
            mesh: The devices that share the rows.
            rows_per_device: Rows that a device computes at a time.
        """
        self._batch_size = rows_per_device * num_batch_shards(mesh)
        self._sharding = by_example(mesh)
        self.run_batch = jax.jit(
            function,
            in_shardings=(None, self._sharding),
            out_shardings=self._sharding,
        )

    def __call__(self, whole: PyTree, rows: PyTree) -> Any:
        """Returns the results of all rows, as NumPy arrays in the order of the rows.

        Args:
            whole: The function's first argument.
            rows: NumPy arrays that share their first axis, with at least one row.
        """
        num_rows = len(jax.tree.leaves(rows)[0])
        results = []
        for start in range(0, num_rows, self._batch_size):
            # The last batch is filled up with copies of the last row, whose results are dropped.
            taken = np.minimum(np.arange(start, start + self._batch_size), num_rows - 1)
            batch = jax.tree.map(lambda array, taken=taken: array[taken], rows)
            results.append(as_numpy(self.run_batch(whole, known_batch(self._sharding, batch))))
        return jax.tree.map(lambda *arrays: np.concatenate(arrays)[:num_rows], *results)
