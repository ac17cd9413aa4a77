"""Busy time of a GPU by kind of kernel, from a trace of JAX's profiler."""

import dataclasses
import pathlib
import re
from typing import Any

from jax.profiler import ProfileData

_DEVICE, _STREAM = re.compile(r"/device:GPU:\d+"), re.compile(r"Stream ")
# Names of cuDNN's kernels and of our own, then of cuBLAS', CUTLASS' and Triton's products. XLA
# calls its own kernels by what they fuse, such as loop_add_fusion.
_ATTENTION = re.compile(r"cudnn|sdpa|fmha|flash|attention", re.IGNORECASE)
_PRODUCT = re.compile(r"gemm|nvjet|cutlass|cublas|xmma", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class BusyTime:
    """Milliseconds of one step in which kernels ran on one GPU, by kind."""

    product_ms: float = 0.0
    attention_ms: float = 0.0
    other_ms: float = 0.0

    @property
    def ms(self) -> float:
        return self.product_ms + self.attention_ms + self.other_ms


def read_trace(folder: pathlib.Path, num_steps: int) -> BusyTime | None:
    """Reads the trace that `jax.profiler.trace` wrote to a folder; see `busy_time`."""
    (path,) = folder.rglob("*.xplane.pb")
    return busy_time(ProfileData.from_file(str(path)), num_steps)


def busy_time(profile: Any, num_steps: int) -> BusyTime | None:
    """Adds up the kernels of a profile.

    Args:
        profile: One host's `ProfileData`.
        num_steps: Steps that were profiled.

    Returns:
        The mean over GPUs and steps; None of a profile without a GPU.
    """
    gpus = [plane for plane in profile.planes if _DEVICE.fullmatch(plane.name)]
    if not gpus:
        return None
    products = attention = everything = 0.0
    for line in (line for plane in gpus for line in plane.lines if _STREAM.match(line.name)):
        for event in line.events:
            everything += event.duration_ns
            if _ATTENTION.search(event.name):
                attention += event.duration_ns
            elif _PRODUCT.search(event.name):
                products += event.duration_ns
    ns_to_ms = 1e-6 / (len(gpus) * num_steps)
    others = everything - products - attention
    return BusyTime(products * ns_to_ms, attention * ns_to_ms, others * ns_to_ms)
