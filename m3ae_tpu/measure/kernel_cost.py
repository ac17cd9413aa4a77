"""Cost of a kernel or baseline: scheduled by the compiler of a described TPU, or timed here."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from m3ae_tpu.kernels.attention.block_sizes import Blocks, override_blocks
from m3ae_tpu.kernels.attention.shapes import AttentionShape
from m3ae_tpu.kernels.cross_entropy.shapes import CrossEntropyShape
from m3ae_tpu.measure import tpu_schedule
from m3ae_tpu.measure.baselines import Baseline, attention_baseline, cross_entropy_baseline

_ATTENTION_BATCHES = (16, 32)
"""Multiples of the rows of every kernel's program, times the two cores of some chips."""
_TRAINING_BATCHES = (64, 128)
"""Large enough that XLA does not keep the scores in VMEM."""
_LOSS_BATCH = 64
"""Rows of a chip in a training step, which share the memory traffic of the head's parameters."""


@dataclasses.dataclass(frozen=True)
class Timing:
    """Time of one row of the batch."""

    us: float
    """Median over the rounds."""
    spread: float
    """Half the distance between the quartiles, as a share of the median."""
    flops: float
    """FLOPs of the matrix products, without recomputation."""
    bytes: float
    """Memory traffic if each input is read once and each result written once."""


@dataclasses.dataclass(frozen=True)
class Case:
    """An operation to measure, on rows of one shape, in one direction."""

    shape: AttentionShape | CrossEntropyShape
    backward: bool
    """Compute the gradients too; the output's gradient is then the first argument."""
    is_masked: bool = False
    """Give attention a mask of valid keys."""


def make(name: str, case: Case, batch: int) -> tuple[Callable, list]:
    """Returns the function of a baseline and its arguments' shapes.

    Args:
        name: "ours" or one of `baselines.AGAINST` of the operation.
        case: Operation, shape and direction.
        batch: Rows.
    """
    if isinstance(case.shape, AttentionShape):
        baseline = attention_baseline(name, case.shape, batch, is_masked=case.is_masked)
    else:
        baseline = cross_entropy_baseline(name, case.shape, batch)
    if not case.backward:
        return baseline.forward, baseline.inputs
    return _both(baseline), [jax.eval_shape(baseline.forward, *baseline.inputs), *baseline.inputs]


def _both(baseline: Baseline) -> Callable:
    def both(dout, *inputs):
        def of_differentiated(*arrays):
            given = list(inputs)
            for index, array in zip(baseline.differentiated, arrays, strict=True):
                given[index] = array
            return baseline.forward(*given)

        out, pull_back = jax.vjp(
            of_differentiated, *(inputs[index] for index in baseline.differentiated)
        )
        return out, *pull_back(dout)

    return both


def scheduled(name: str, case: Case, chip: str) -> tpu_schedule.Cost:
    """Returns the scheduled cost of a row: of one more for attention, of one of 64 for
    cross-entropy.

    Call `tpu_schedule.prepare(replay=True)` before. Some operations abort the process.

    Raises:
        NotCountedError: the replay has no cycles for an operation.
    """
    if isinstance(case.shape, AttentionShape):
        return tpu_schedule.row_cost(
            chip, lambda batch: make(name, case, batch), _ATTENTION_BATCHES
        )
    cost = tpu_schedule.cost(chip, *_whole(name, case))
    return tpu_schedule.Cost(chip, cost.cycles / _LOSS_BATCH, cost.hbm_bytes / _LOSS_BATCH)


def scheduled_with(kernel: str, blocks: Blocks, case: Case, chip: str) -> float | None:
    """Returns a row's scheduled microseconds with given block sizes of a kernel, or None if it does
    not compile.
    """
    jax.clear_caches()
    with override_blocks(kernel, blocks):
        try:
            return scheduled("ours", case, chip).us
        except jax.errors.JaxRuntimeError:  # Too little VMEM, or too few registers.
            return None


def traffic(name: str, case: Case, chip: str) -> float:
    """Returns the HBM bytes of a row, at the batch of a training step.

    They need no replay. Divided by the bandwidth, they bound the time from below.
    """
    if not isinstance(case.shape, AttentionShape):
        return tpu_schedule.traffic(chip, *_whole(name, case)) / _LOSS_BATCH
    programs = [make(name, case, batch) for batch in _TRAINING_BATCHES]
    small, large = (tpu_schedule.traffic(chip, function, *shapes) for function, shapes in programs)
    return (large - small) / (_TRAINING_BATCHES[1] - _TRAINING_BATCHES[0])


def _whole(name: str, case: Case) -> tuple:
    function, shapes = make(name, case, _LOSS_BATCH)
    return function, *shapes


def timed(names: Sequence[str], case: Case, batch: int, *, rounds: int) -> dict[str, Timing | str]:
    """Times implementations on the default device, one after the other in every round.

    Consecutive calls have different inputs.

    Returns:
        For each name its timing, or the reason that it does not run here.
    """
    calls: dict[str, Callable[[], float]] = {}
    results: dict[str, Timing | str] = {}
    for name in names:
        try:
            calls[name] = _stopwatch(*make(name, case, batch), getattr(case.shape, "vocab", 2))
        except (NotImplementedError, ModuleNotFoundError, ValueError, RuntimeError) as error:
            results[name] = (
                f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            )
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            seconds[name].append(call())
    flops, moved = _work(case, batch)
    for name, measured in seconds.items():
        low, middle, high = statistics.quantiles(measured, n=4)
        results[name] = Timing(
            middle / batch * 1e6, (high - low) / 2 / middle, flops / batch, moved / batch
        )
    return {name: results[name] for name in names}


_INPUT_SETS = 4
_CALLS = 8


def _stopwatch(function: Callable, shapes: Sequence, most: int) -> Callable[[], float]:
    """Compiles a function and returns a function that measures its seconds a call."""
    compiled = jax.jit(function)
    sets = [_draw(jax.random.key(seed), shapes, most) for seed in range(_INPUT_SETS)]
    for arguments in sets:
        jax.block_until_ready(compiled(*arguments))

    def measure() -> float:
        start = time.perf_counter()
        results = [compiled(*sets[call % _INPUT_SETS]) for call in range(_CALLS)]
        jax.block_until_ready(results)
        return (time.perf_counter() - start) / _CALLS

    return measure


def _draw(key: jax.Array, shapes: Sequence, most: int) -> list[Any]:
    """Draws normal floats, integers below `most`, and masks that are True for three quarters."""
    keys = jax.random.split(key, len(shapes))
    return [
        jax.random.bernoulli(key, 0.75, x.shape)
        if x.dtype == jnp.bool
        else jax.random.randint(key, x.shape, 0, most, x.dtype)
        if jnp.issubdtype(x.dtype, jnp.integer)
        else jax.random.normal(key, x.shape, jnp.float32).astype(x.dtype)
        for key, x in zip(keys, shapes, strict=True)
    ]


def _work(case: Case, batch: int) -> tuple[int, int]:
    """Returns FLOPs of the matrix products and bytes of inputs and results, of a whole call."""
    shape = case.shape
    is_attention = isinstance(shape, AttentionShape)
    products = (
        2 * batch * shape.tokens * (shape.tokens if is_attention else shape.vocab) * shape.width
    )
    # Attention has products for scores and output, and four for the gradients.
    flops = products * (
        (6 if case.backward else 2) if is_attention else (3 if case.backward else 1)
    )
    function, shapes = make("xla", case, batch)
    arrays = [*shapes, *jax.tree.leaves(jax.eval_shape(function, *shapes))]
    return flops, sum(x.size * x.dtype.itemsize for x in arrays)
