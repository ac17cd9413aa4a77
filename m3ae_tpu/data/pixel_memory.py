"""Memory for decoded pixels that a thread uses again and again."""

import threading

import numpy as np
from jaxtyping import UInt8

_KEPT_BYTES = 2**24
"""Images of more bytes get memory of their own: a thread does not hold a huge one's for ever."""
_OFFSET = 4
"""Bytes from a multiple of 16, where NumPy's arrays begin: whole pixels of four bytes."""


class PixelMemory(threading.local):
    """The memory of the pixels of one image for each thread.

    Used again, it stays in the processor's cache, and so do the pixels: libjpeg-turbo writes a row
    past the cache if it begins at a multiple of 32 bytes, and the resizer would wait for it. Here
    hardly a row begins so.
    """

    def __init__(self):
        self._memory = np.empty(0, np.uint8)

    def take(self, num_bytes: int) -> UInt8[np.ndarray, " bytes"]:
        """Returns memory of so many bytes; this thread's next call returns the same."""
        memory = self._memory
        if memory.size < num_bytes + _OFFSET:
            memory = np.empty(num_bytes + _OFFSET, np.uint8)
            if num_bytes <= _KEPT_BYTES:
                self._memory = memory
        return memory[_OFFSET : _OFFSET + num_bytes]
