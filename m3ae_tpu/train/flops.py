"""Counts the floating-point operations of a function from its jaxpr."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr


def count_matmul_flops(function: Callable[..., Any], *arguments: Any) -> int:
    """Returns the multiplications and additions of all matrix products in a call of `function`.

    Counted where they are written: the body of a scan times its length, what remat computes again
    twice. Elementwise work is left out, as is usual for utilisation figures.

    Args:
        function: Traced, not run.
        arguments: Arrays or `jax.ShapeDtypeStruct`s.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left, result = (_shape(variables[0]) for variables in (equation.invars, equation.outvars))
            total += 2 * math.prod(result) * math.prod(left[axis] for axis in contracted)
        repeats = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        total += repeats * sum(_count(inner) for inner in _inner_jaxprs(equation.params))
    return total


def _inner_jaxprs(parameters: dict[str, Any]) -> list[Jaxpr]:
    inner = []
    for value in parameters.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr):
                inner.append(item.jaxpr)
            elif isinstance(item, Jaxpr):
                inner.append(item)
    return inner


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape
