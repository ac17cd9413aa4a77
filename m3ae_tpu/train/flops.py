"""Counts the floating-point operations of a function, or of a loss's gradient, from its jaxpr."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.interpreters.partial_eval import dce_jaxpr
from jaxtyping import PyTree

from m3ae_tpu.kernels.chips import CHIPS, chip_name
from m3ae_tpu.train.step import Loss


def seconds_at_peak(count_flops: Callable[[], int]) -> float:
    """Returns the time that the devices here need for some FLOPs at their peak; 0 if it is not
    known.

    Divided by the time that a step takes it is the model FLOPs utilisation (MFU).

    Args:
        count_flops: Returns the FLOPs of all devices; only called where the chip is in the table.
    """
    chip = chip_name(jax.devices()[0].device_kind)
    return count_flops() / (CHIPS[chip].flops * jax.device_count()) if chip else 0.0


def flops_by_scope(loss: Loss, model: PyTree, batch: dict[Any, Any]) -> dict[str, int]:
    """Returns the FLOPs of matrix products of a batch, forward and backward, by named scope.

    Args:
        loss: The run's loss.
        model: The model, or its shapes; without remat and with the reference operations, as work
            that is computed again would count twice, and work in a kernel not at all.
        batch: Arrays by kind of rows, or their shapes.
    """
    rows = {
        kind: jax.ShapeDtypeStruct(jax.tree.leaves(arrays)[0].shape[:1], np.int32)
        for kind, arrays in batch.items()
    }
    key = jax.eval_shape(lambda: jax.random.key(0))
    return matmul_flops(jax.grad(loss, has_aux=True), model, batch, rows, key)


def matmul_flops(function: Callable[..., Any], *arguments: Any) -> dict[str, int]:
    """Returns the multiplications and additions of all matrix products in a call of `function`, by
    named scope.

    Counted where they are written: the body of a scan times its length; what remat computes again
    twice, unless nobody needs it. Elementwise work is left out, as is usual for utilisation
    figures.

    Args:
        function: Traced, not run.
        arguments: Arrays or `jax.ShapeDtypeStruct`s.

    Returns:
        FLOPs by scope as JAX writes it, `transpose(jvp(encoder))/mlp` for example.
    """
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    needed, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    counted: dict[str, int] = {}
    _count(needed, "", 1, counted)
    return counted


def _count(jaxpr: Jaxpr, scope: str, times: int, counted: dict[str, int]) -> None:
    for equation in jaxpr.eqns:
        here = "/".join(filter(None, (scope, str(equation.source_info.name_stack))))
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left, result = (
                _shape(variables[0]) for variables in (equation.invars, equation.outvars)
            )
            flops = 2 * math.prod(result) * math.prod(left[axis] for axis in contracted)
            counted[here] = counted.get(here, 0) + times * flops
        repeats = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        for inner in _inner_jaxprs(equation.params):
            _count(inner, here, times * repeats, counted)


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
