"""Batches on the devices, ahead of the step that needs them.

Not `grain.experimental.device_put`: here a wait has a time limit, so that workers that hang become
an error.
"""

import contextlib
import math
import queue
import threading
import time
from collections.abc import Iterator

import jax

from m3ae_tpu.batch import Batch
from m3ae_tpu.data.loader import BatchInfo, Loader
from m3ae_tpu.data.workers import describe_workers, kill_workers
from m3ae_tpu.errors import DataError
from m3ae_tpu.parallel.share import global_batch

_DEPTH = 2
"""Batches that wait on the devices: one may be in transfer while the step takes the other."""
_CLOSE_SECONDS = 10.0
"""The longest that `close` waits for a thread that hangs."""


class Prefetcher(Iterator[tuple[Batch, BatchInfo]]):
    """Takes batches from a loader and puts them on the mesh in a background thread.

    Every process must take the same number of batches: it yields global arrays. Close it, also
    after an error; it closes the loader.
    """

    def __init__(
        self,
        loader: Loader,
        sharding: jax.sharding.NamedSharding,
        *,
        timeout_seconds: float = float("inf"),
    ):
        """Starts at once.

        Args:
            loader: Makes this process's rows.
            sharding: Placement of a global batch on the mesh: its first axis over the devices.
            timeout_seconds: Wait for one batch after which workers or disk count as hanging.
        """
        self._timeout_seconds, self._has_timed_out = timeout_seconds, False
        self.wait_seconds = 0.0
        """Time spent waiting for batches so far: what the data costs the training loop."""
        self._loader = loader
        self._ready: queue.Queue[tuple[Batch, BatchInfo] | BaseException] = queue.Queue(_DEPTH)
        self._is_closed = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(
            target=self._fill, args=(sharding,), name="prefetch", daemon=True
        )
        self._thread.start()

    def __next__(self) -> tuple[Batch, BatchInfo]:
        """Returns the next global batch, and the records of this process's rows in it.

        Raises:
            DataError: the loader failed, or no batch came in time; raised again at every further
                call.
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

    def _wait(self) -> tuple[Batch, BatchInfo] | BaseException:
        """Waits for the next item up to the time limit: stopped workers and lost disks raise no
        error.
        """
        # Counts short waits instead of reading the clock: a suspended program has not waited.
        seconds = min(1.0, self._timeout_seconds)
        for _ in range(math.ceil(min(self._timeout_seconds, 1e9) / seconds)):
            with contextlib.suppress(queue.Empty):
                return self._ready.get(timeout=seconds)
        states = describe_workers()
        kill_workers()  # A stopped one would block the end of this process.
        self._has_timed_out = True
        return DataError(
            f"no batch for {self._timeout_seconds:g} seconds: {states}.\n"
            "Check the disk and the workers, then start again: the run resumes from its newest "
            "checkpoint. If the data is just slow, raise --data.timeout_seconds."
        )

    def close(self) -> None:
        """Stops the thread and closes the loader."""
        self._is_closed.set()
        end = time.monotonic() + _CLOSE_SECONDS if self._has_timed_out else math.inf
        while self._thread.is_alive() and time.monotonic() < end:
            # The thread may be waiting for room in the queue.
            while not self._ready.empty():
                self._ready.get()
            self._thread.join(timeout=0.1)
        self._loader.close()

    def _fill(self, sharding: jax.sharding.NamedSharding) -> None:
        try:
            while not self._is_closed.is_set():
                batch, info = next(self._loader)
                # On the CPU, jax may keep using the arrays' memory; nothing writes to it again.
                self._ready.put((global_batch(sharding, batch), info))
        except BaseException as error:  # Raised in the training loop, which waits for a batch.
            self._ready.put(error)
