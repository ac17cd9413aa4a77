"""Batches on the devices, ahead of the step that needs them."""

import queue
import threading
import time
from collections.abc import Iterator

import jax

from m3ae_tpu.config import Kind
from m3ae_tpu.data.loader import Counts, Loader

type DeviceBatch = dict[Kind, dict[str, jax.Array]]

_DEPTH = 2
"""Batches that lie ready: one may be on its way to the device while another waits."""


class Prefetcher(Iterator[tuple[DeviceBatch, Counts]]):
    """Takes batches from a loader and puts them on the mesh in a background thread.

    Every process must take the same number of batches: what it yields are the global arrays. Close it, also
    after an error; it closes the loader.
    """

    def __init__(self, loader: Loader, sharding: jax.sharding.Sharding):
        """Starts at once.

        Args:
            loader: This process's rows.
            sharding: How a global batch lies on the mesh: its first axis over the devices.
        """
        self.wait_seconds = 0.0
        """Time spent waiting for batches so far: what the data side costs the training loop."""
        self._loader = loader
        self._ready: queue.Queue[tuple[DeviceBatch, Counts] | BaseException] = queue.Queue(_DEPTH)
        self._is_closed = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._fill, args=(sharding,), name="prefetch", daemon=True)
        self._thread.start()

    def __next__(self) -> tuple[DeviceBatch, Counts]:
        """Returns the next global batch, and the counts of this process's rows in it.

        Raises:
            Whatever the loader raised, and again at every further call.
        """
        if self._error is not None:
            raise self._error
        if self._is_closed.is_set():
            raise RuntimeError("this prefetcher is closed")
        start = time.monotonic()
        item = self._ready.get()
        self.wait_seconds += time.monotonic() - start
        if isinstance(item, BaseException):
            self._error = item
            raise item
        return item

    def close(self) -> None:
        """Stops the thread and closes the loader."""
        self._is_closed.set()
        while self._thread.is_alive():
            # The thread may be waiting for room.
            while not self._ready.empty():
                self._ready.get()
            self._thread.join(timeout=0.1)
        self._loader.close()

    def _fill(self, sharding: jax.sharding.Sharding) -> None:
        try:
            while not self._is_closed.is_set():
                batch, counts = next(self._loader)
                # The arrays are never written to again: on the CPU, jax may go on using their memory.
                self._ready.put(
                    (
                        jax.tree.map(
                            lambda rows: jax.make_array_from_process_local_data(sharding, rows), batch
                        ),
                        counts,
                    )
                )
        # To the training loop, which waits for a batch.
        except BaseException as error:
            self._ready.put(error)
