"""Batches on the devices, ahead of the step that needs them."""

import contextlib
import math
import queue
import threading
import time
from collections.abc import Iterator

import jax

from m3ae_tpu.config import Kind
from m3ae_tpu.data.loader import Loader, Origin
from m3ae_tpu.data.workers import describe_workers, kill_workers

type DeviceBatch = dict[Kind, dict[str, jax.Array]]

_DEPTH = 2
"""Batches that lie ready: one may be on its way to the device while another waits."""


_PATIENCE = 10.0
"""Seconds for a thread that hangs to come back, when all is over."""


class Prefetcher(Iterator[tuple[DeviceBatch, Origin]]):
    """Takes batches from a loader and puts them on the mesh in a background thread.

    Every process must take the same number of batches: what it yields are the global arrays. Close
    it, also after an error; it closes the loader.
    """

    def __init__(
        self,
        loader: Loader,
        sharding: jax.sharding.Sharding,
        *,
        timeout_seconds: float = float("inf"),
    ):
        """Starts at once.

        Args:
            loader: This process's rows.
            sharding: How a global batch lies on the mesh: its first axis over the devices.
            timeout_seconds: How long to wait for a batch before workers or disk count as hanging.
        """
        self._timeout_seconds, self._gives_up = timeout_seconds, False
        self.wait_seconds = 0.0
        """Time spent waiting for batches so far: what the data side costs the training loop."""
        self._loader = loader
        self._ready: queue.Queue[tuple[DeviceBatch, Origin] | BaseException] = queue.Queue(_DEPTH)
        self._is_closed = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(
            target=self._fill, args=(sharding,), name="prefetch", daemon=True
        )
        self._thread.start()

    def __next__(self) -> tuple[DeviceBatch, Origin]:
        """Returns the next global batch, and where this process's rows in it come from.

        Raises:
            RuntimeError: no batch came in time.
            Whatever the loader raised, and again at every further call.
        """
        if self._error is not None:
            raise self._error
        if self._is_closed.is_set():
            raise RuntimeError("this prefetcher is closed")
        start = time.monotonic()
        item = self._wait()
        self.wait_seconds += time.monotonic() - start
        if isinstance(item, BaseException):
            self._error = item
            raise item
        return item

    def _wait(self) -> tuple[DeviceBatch, Origin] | BaseException:
        """Waits for the next item, but not for ever: a stopped worker or a lost disk gives no
        error.
        """
        # Turns, not the clock: a program that was itself suspended has not waited.
        turn = min(1.0, self._timeout_seconds)
        for _ in range(math.ceil(min(self._timeout_seconds, 1e9) / turn)):
            with contextlib.suppress(queue.Empty):
                return self._ready.get(timeout=turn)
        state = describe_workers()
        kill_workers()  # A stopped one would hold up the end of this process.
        self._gives_up = True
        return RuntimeError(
            f"no batch for {self._timeout_seconds:g} seconds: {state}.\n"
            "Look after the disk and the workers, then start again: the run goes on from its newest checkpoint. "
            "If the data are just slow, raise --data.timeout_seconds."
        )

    def close(self) -> None:
        """Stops the thread and closes the loader."""
        self._is_closed.set()
        end = time.monotonic() + _PATIENCE if self._gives_up else math.inf
        while self._thread.is_alive() and time.monotonic() < end:
            # The thread may be waiting for room.
            while not self._ready.empty():
                self._ready.get()
            self._thread.join(timeout=0.1)
        self._loader.close()

    def _fill(self, sharding: jax.sharding.Sharding) -> None:
        try:
            while not self._is_closed.is_set():
                batch, origin = next(self._loader)
                # The arrays are never written to again: on the CPU, jax may go on using their
                # memory.
                self._ready.put(
                    (
                        jax.tree.map(
                            lambda rows: jax.make_array_from_process_local_data(sharding, rows),
                            batch,
                        ),
                        origin,
                    )
                )
        # To the training loop, which waits for a batch.
        except BaseException as error:
            self._ready.put(error)
