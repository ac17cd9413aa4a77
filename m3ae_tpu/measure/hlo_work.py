"""Work of an operation of a compiled TPU program: FLOPs of its products, sums over rows.

A fusion computes all that the computations within it do. TPUs compute matrix products as
convolutions.
"""

import re
from collections.abc import Iterator

import numpy as np

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
    """Returns two for each product of a number of the operand and one of the kernel."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", convolution.rest)
    assert labels is not None
    texts = (*(shapes[name] for name in convolution.operands[:2]), convolution.shape)
    operand, kernel, result = (
        dict(zip(names, sizes(text), strict=True))
        for names, text in zip(labels.groups(), texts, strict=True)
    )
    products = result["b"] * result["f"] * kernel["i"]
    for axis in filter(str.isdigit, kernel):
        strides = (
            _window(convolution.rest, field, int(axis))
            for field in ("stride", "rhs_dilate", "lhs_dilate")
        )
        low = _window(convolution.rest, "pad", int(axis), default=0)
        products *= _num_pairs(operand[axis], kernel[axis], result[axis], low, *strides)
    return 2 * products


def _num_pairs(
    operand: int, kernel: int, result: int, low: int, stride: int, dilation: int, spread: int
) -> int:
    """Returns the pairs of operand and kernel that meet along one axis of a convolution.

    Batches of products are such axes too: examples lie so far apart, or in so much padding, that a
    window sees one of them.

    Args:
        operand: Length of the operand, without padding.
        kernel: Length of the kernel.
        result: Length of the result.
        low: Padding before the operand.
        stride: Steps of the window from one result to the next.
        dilation: Steps between numbers of the kernel.
        spread: Steps between numbers of the operand.
    """
    places = np.arange(result)[:, None] * stride + np.arange(kernel) * dilation - low
    meets = (places >= 0) & (places <= (operand - 1) * spread) & (places % spread == 0)
    return int(meets.sum())


def _window(rest: str, field: str, axis: int, *, default: int = 1) -> int:
    """Returns a field of a convolution's window for one axis; of `pad` the padding before."""
    found = re.search(rf"window={{[^}}]*\b{field}=([\d_x-]+)", rest)
    return int(found.group(1).split("x")[axis].split("_")[0]) if found else default


def _is_of_rows(shapes: Shapes, reduce: Instruction) -> bool:
    """Returns if a sum is not over the last axis alone, and leaves a vector or more."""
    axes = re.search(r"dimensions={([\d,]*)}", reduce.rest)
    rank = len(sizes(shapes[reduce.operands[0]]))
    summed = {int(axis) for axis in axes.group(1).split(",") if axis} if axes else set()
    return bool(summed) and rank - 1 not in summed
