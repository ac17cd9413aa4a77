"""Work of an operation of a compiled TPU program: FLOPs of its products, sums over rows.

A fusion computes all that the computations within it do. TPUs compute matrix products as
convolutions.
"""

import math
import re
from collections.abc import Iterator

from m3ae_tpu.measure.hlo_program import Computations, Instruction, called_computation, sizes

type Shapes = dict[str, str]


def product_flops(computations: Computations, shapes: Shapes, line: Instruction) -> int:
    """Returns the FLOPs of the matrix products that one run of an operation computes.

    Args:
        computations: The program's.
        shapes: Shapes of the instructions beside the operation, by name.
        line: The operation.
    """
    return sum(
        _flops(around, inner)
        for around, inner in _computed(computations, shapes, line)
        if inner.kind == "convolution"
    )


def sums_rows(computations: Computations, shapes: Shapes, line: Instruction) -> bool:
    """Returns if an operation sums over rows, as a bias's gradient does, beside no product."""
    computed = list(_computed(computations, shapes, line))
    if any(inner.kind == "convolution" for _, inner in computed):
        return False
    return any(inner.kind == "reduce" and _is_of_rows(around, inner) for around, inner in computed)


def _computed(
    computations: Computations, shapes: Shapes, line: Instruction
) -> Iterator[tuple[Shapes, Instruction]]:
    """Yields an operation and all that it is made of, each with the shapes beside it."""
    yield shapes, line
    called = called_computation(line.rest, "calls") if line.kind == "fusion" else None
    if called is not None:
        around = {inner.name: inner.shape for inner in computations[called]}
        for inner in computations[called]:
            yield from _computed(computations, around, inner)


def _flops(shapes: Shapes, convolution: Instruction) -> int:
    """Returns two for each number of the result and each number of the kernel that it sums over."""
    kernel = sizes(shapes[convolution.operands[1]])
    labels = re.search(r"dim_labels=\w+_(\w+)->", convolution.rest)
    window = re.search(r"window={([^}]*)}", convolution.rest)
    assert labels is not None
    summed = math.prod(kernel) // kernel[labels.group(1).index("o")]
    for length, apart in zip(_window(window, "size"), _window(window, "lhs_dilate"), strict=False):
        # Examples that are multiplied apart lie on an axis so far apart that a window sees one.
        summed //= length if apart > 1 else 1
    return 2 * math.prod(sizes(convolution.shape)) * summed


def _window(window: re.Match | None, field: str) -> list[int]:
    found = re.search(rf"\b{field}=([\dx]+)", window.group(1)) if window else None
    return [int(length) for length in found.group(1).split("x")] if found else []


def _is_of_rows(shapes: Shapes, reduce: Instruction) -> bool:
    """Returns if a sum is not over the last axis alone, and leaves a vector or more."""
    axes = re.search(r"dimensions={([\d,]*)}", reduce.rest)
    rank = len(sizes(shapes[reduce.operands[0]]))
    summed = {int(axis) for axis in axes.group(1).split(",") if axis} if axes else set()
    return bool(summed) and rank - 1 not in summed
