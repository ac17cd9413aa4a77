"""The C library's allocator, set before JAX starts its threads."""

import ctypes
import glob
import os

_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8  # Numbers of <malloc.h>.
_ACCELERATORS = ("/dev/accel*", "/dev/vfio/[0-9]*", "/dev/nvidia[0-9]*", "/dev/kfd")


def keep_freed_memory() -> None:
    """Lets steps on CPUs use memory again that earlier ones freed, where the C library is glibc.

    Otherwise glibc gives large buffers back to the kernel, which zeroes their pages when the next
    step asks for them. Does nothing beside an accelerator, where steps do not allocate on the host.
    """
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms != "cpu" and any(map(glob.glob, _ACCELERATORS)):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_MAX, 0)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_ARENA_MAX, 1)  # Other arenas give no piece above 64 MiB.
