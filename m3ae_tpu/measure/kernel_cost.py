"""The cost of a baseline: scheduled by the TPU compiler with no TPU at hand, or timed on the device
that is here.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from m3ae_tpu.kernels.attention.block_sizes import Blocks, override_blocks
from m3ae_tpu.kernels.attention.shapes import ATTENTION, AttentionShape
from m3ae_tpu.kernels.cross_entropy.shapes import CROSS_ENTROPY, CrossEntropyShape
from m3ae_tpu.measure import tpu_schedule
from m3ae_tpu.measure.baselines import Baseline, attention_baseline, cross_entropy_baseline

SHAPES = {"attention": ATTENTION, "cross_entropy": CROSS_ENTROPY}

_ATTENTION_BATCHES = (16, 32)
"""Multiples of the rows of every kernel's program, times two cores."""
_TRAINING_BATCHES = (64, 128)
"""So many that XLA does not keep their scores in VMEM."""
_LOSS_BATCH = 64
"""Rows of a chip in a training step: reading the head is shared among them, as there."""

PEAKS = {
    "TPU v4": (275e12, 1228e9),
    "TPU v5 lite": (197e12, 819e9),
    "TPU v5": (459e12, 2765e9),
    "TPU v6 lite": (918e12, 1640e9),
    "NVIDIA H100 80GB HBM3": (989e12, 3350e9),
    "NVIDIA H200": (989e12, 4800e9),
}
"""Dense bfloat16 FLOP/s and bytes/s of memory by `device_kind`, from the makers' data sheets."""


@dataclasses.dataclass(frozen=True)
class Timing:
    """Of one row of the batch."""

    us: float
    """Median over the rounds."""
    spread: float
    """Half the distance between the quartiles, of the median."""
    flops: float
    """Of the matrix products, without what is computed again."""
    bytes: float
    """Each input read once, each result written once."""


@dataclasses.dataclass(frozen=True)
class Case:
    """What is measured: an operation on rows of one shape, in one direction."""

    shape: AttentionShape | CrossEntropyShape
    backward: bool
    """Compute the gradients too; the output's gradient is then the first argument."""
    masked: bool = False
    """Attention with a mask of valid keys."""


def make(name: str, case: Case, batch: int) -> tuple[Callable, list]:
    """Returns the function of a baseline and its arguments' shapes.

    Args:
        name: "ours" or one of `baselines.AGAINST` of the operation.
        case: What it computes.
        batch: Rows.
    """
    if isinstance(case.shape, AttentionShape):
        baseline = attention_baseline(name, case.shape, batch, masked=case.masked)
    else:
        baseline = cross_entropy_baseline(name, case.shape, batch)
    if not case.backward:
        return baseline.forward, baseline.inputs
    return _both(baseline), [jax.eval_shape(baseline.forward, *baseline.inputs), *baseline.inputs]


def _both(baseline: Baseline) -> Callable:
    def both(dout, *inputs):
        def of_differentiated(*arrays):
            given = list(inputs)
            for place, array in zip(baseline.differentiated, arrays, strict=True):
                given[place] = array
            return baseline.forward(*given)

        out, pull_back = jax.vjp(
            of_differentiated, *(inputs[place] for place in baseline.differentiated)
        )
        return out, *pull_back(dout)

    return both


def scheduled(name: str, case: Case, chip: str) -> tpu_schedule.Cost:
    """Returns the scheduled cost of a row: of one more of attention, of one of 64 of cross-entropy.

    `tpu_schedule.prepare(replay=True)` comes before. Some operations abort the process.

    Raises:
        NotCountedError: an operation that the replay has no cycles for.
    """
    if isinstance(case.shape, AttentionShape):
        return tpu_schedule.row_cost(
            chip, lambda batch: make(name, case, batch), _ATTENTION_BATCHES
        )
    cost = tpu_schedule.cost(chip, *_whole(name, case))
    return tpu_schedule.Cost(chip, cost.cycles / _LOSS_BATCH, cost.hbm_bytes / _LOSS_BATCH)


def scheduled_with(kernel: str, blocks: Blocks, case: Case, chip: str) -> float | None:
    """Returns a row's scheduled microseconds with other block sizes of a kernel; None if it does
    not compile.
    """
    jax.clear_caches()
    with override_blocks(kernel, blocks):
        try:
            return scheduled("ours", case, chip).us
        except jax.errors.JaxRuntimeError:  # Out of VMEM or of registers.
            return None


def traffic(name: str, case: Case, chip: str) -> float:
    """Returns the bytes of memory traffic of a row of a training step's batch: all that is known
    without a replay.

    Cycles left out, it bounds the time from below.
    """
    if not isinstance(case.shape, AttentionShape):
        return tpu_schedule.traffic(chip, *_whole(name, case)) / _LOSS_BATCH
    few, many = _TRAINING_BATCHES
    programs = [make(name, case, batch) for batch in (few, many)]
    small, large = (tpu_schedule.traffic(chip, function, *shapes) for function, shapes in programs)
    return (large - small) / (many - few)


def _whole(name: str, case: Case) -> tuple:
    function, shapes = make(name, case, _LOSS_BATCH)
    return function, *shapes


def timed(names: Sequence[str], case: Case, batch: int, *, rounds: int) -> dict[str, Timing | str]:
    """Times baselines on the default device, in turns, each call with other inputs than the one
    before.

    Returns:
        For each name its timing, or why it does not run here.
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
    """Compiles a function; returns what measures its seconds a call, over several calls in a row."""
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
    """Normal floats, integers below `most`, and masks of which three quarters are True."""
    keys = jax.random.split(key, len(shapes))
    return [
        jax.random.bernoulli(key, 0.75, x.shape)
        if x.dtype == jnp.bool
        else jax.random.randint(key, x.shape, 0, most, x.dtype)
        if jnp.issubdtype(x.dtype, jnp.integer)
        else jax.random.normal(key, x.shape, jnp.float32).astype(x.dtype)
        for key, x in zip(keys, shapes, strict=True)
    ]


def _work(case: Case, batch: int) -> tuple[float, float]:
    """FLOPs of the matrix products, and bytes of inputs and results, both of a whole call."""
    shape = case.shape
    is_attention = isinstance(shape, AttentionShape)
    products = (
        2 * batch * shape.tokens * (shape.tokens if is_attention else shape.vocab) * shape.width
    )
    # Attention: scores and output; then the gradients of weights, queries, keys and values.
    flops = products * (
        (6 if case.backward else 2) if is_attention else (3 if case.backward else 1)
    )
    function, shapes = make("xla", case, batch)
    arrays = [*shapes, *jax.tree.leaves(jax.eval_shape(function, *shapes))]
    return flops, sum(x.size * x.dtype.itemsize for x in arrays)
