"""Memory for decoded pixels that a thread uses again and again."""

import threading

import numpy as np
from jaxtyping import UInt8

_KEPT_BYTES = 2**24
"""Images of more bytes get memory of their own: a thread does not hold a huge one's for ever."""


class PixelMemory(threading.local):
    """The memory of the pixels of one image for each thread.

    Used again, it stays in the processor's cache, and so do the pixels: rows of images begin at odd
    addresses. libjpeg-turbo writes rows that begin at multiples of 32 bytes past the cache, and the
    resizer would wait for them.
    """

    def __init__(self):
        self._memory = np.empty(0, np.uint8)

    def take(self, num_bytes: int) -> UInt8[np.ndarray, " bytes"]:
        """Returns memory of so many bytes; this thread's next call returns the same."""
        memory = self._memory
        if memory.size <= num_bytes:
            memory = np.empty(num_bytes + 1, np.uint8)
            if num_bytes <= _KEPT_BYTES:
                self._memory = memory
        return memory[1 : num_bytes + 1]
