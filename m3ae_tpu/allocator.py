"""The C library's allocator: memory that was freed stays with the process, where it is glibc."""

import ctypes
import glob
import os
from collections.abc import Mapping

# Numbers of <malloc.h>.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8
_ACCELERATORS = ("/dev/accel*", "/dev/vfio/[0-9]*", "/dev/nvidia[0-9]*", "/dev/kfd")


def keep_freed_memory() -> None:
    """Lets steps on CPUs use memory again that earlier ones freed; to call before JAX is used.

    Otherwise glibc gives large buffers back to the kernel, which zeroes their pages when the next
    step asks for them. Does nothing beside an accelerator, where steps do not allocate on the host.
    """
    if os.environ.get("JAX_PLATFORMS") != "cpu" and any(map(glob.glob, _ACCELERATORS)):
        return
    # Arenas of other threads give no piece above 64 MiB.
    _set({_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _ARENA_MAX: 1})


def keep_image_buffers() -> None:
    """Lets this process use buffers of the size of images again.

    Otherwise glibc maps such a buffer for every image and the kernel zeroes its pages.
    """
    _set({_MMAP_THRESHOLD: 2**25, _TRIM_THRESHOLD: 2**30})


def _set(options: Mapping[int, int]) -> None:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in options.items():
            mallopt(option, value)
