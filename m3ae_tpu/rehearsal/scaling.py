"""Estimates of a rehearsed step on other numbers of chips, from its collectives."""

import math
from typing import NamedTuple

from m3ae_tpu.rehearsal.collectives import BETWEEN_SLICES
from m3ae_tpu.rehearsal.estimates import Figures, collective_seconds
from m3ae_tpu.rehearsal.topologies import HARDWARE, Slice


class Scaled(NamedTuple):
    """A step on so many chips."""

    on: Slice
    step_seconds: float
    efficiency: float
    """Share of the step that computes: its rate a chip, of that of a chip without collectives."""
    between_slices_bytes: float
    """Bytes that a chip sends to other slices in a step."""


def scaled(result: Figures, num_chips: int) -> Scaled:
    """Estimates a rehearsed step on another number of chips of its generation.

    Each chip keeps its rows, so that it computes the same; the mesh's `data` axis grows or shrinks.
    The collectives are those of the rehearsal. Between slices each chip sends its share of the sums
    that the chips of a slice have made, twice over a ring of slices, behind no work.

    Args:
        result: The figures of a config that fits.
        num_chips: At least those of the mesh's other axes.
    """
    on = usual_slice(result["topology"].partition(":")[0], num_chips)
    others = result["mesh"]["fsdp"] * result["mesh"]["tensor"]
    mesh = result["mesh"] | {"data": max(1, num_chips // others)}
    overlapped = waited = sent = 0.0
    in_slice = mesh | {"data": max(1, mesh["data"] // on.num_slices)}
    for group in result["collectives"]:
        num_bytes = group["bytes_per_step"]
        if group["axis"] == BETWEEN_SLICES:
            continue
        seconds = collective_seconds(group["kind"], group["axis"], num_bytes, mesh, on)
        if group["is_asynchronous"]:
            overlapped += seconds
        else:
            waited += seconds
        axes = group["axis"].split("+")
        if group["kind"] == "all-reduce" and "data" in axes and on.num_slices > 1:
            share = (on.num_slices - 1) / on.num_slices
            sent += 2 * share * num_bytes / math.prod(in_slice[name] for name in axes)
    waited += sent / HARDWARE[on.generation].slice_bytes_per_second
    compute = result["compute_seconds"]
    step = max(compute, overlapped) + waited
    return Scaled(on, step, compute / step, sent)


def usual_slice(generation: str, num_chips: int) -> Slice:
    """Returns a slice of so many chips, its sides powers of two and as equal as they can be. More
    chips than the largest has are several of it, the last not quite full.
    """
    largest = HARDWARE[generation].largest
    # A side of v5p's 20 or 28 chips counts as 16: sides are powers of two.
    sides = [2 ** int(math.log2(side)) for side in largest]
    num_slices = math.ceil(num_chips / math.prod(sides))
    if num_slices > 1:
        return Slice(generation, tuple(sides), num_slices)
    left, shape = num_chips, []
    for place, side in enumerate(sides):
        root = left ** (1 / (len(sides) - place))
        shape.append(min(side, 2 ** math.floor(math.log2(root) + 1e-9)))
        left = math.ceil(left / shape[-1])
    return Slice(generation, tuple(sorted(shape, key=(1).__eq__)), num_slices)
