"""Guards the times of operations on described TPUs: the replay of lone ones agrees with the model
that stands for it, and the estimate does not.
"""

import jax
import jax.numpy as jnp
import pytest

from m3ae_tpu.kernels.chips import CHIPS
from m3ae_tpu.measure import tpu_schedule
from m3ae_tpu.measure.compiler_process import CompilerProcess
from m3ae_tpu.measure.hlo_text import Operation, operations
from m3ae_tpu.measure.operation_time import (
    PRODUCT_SHARE,
    REPLAYED_ALONE,
    ceiling_us,
    floor_us,
)

ROWS = 20_480


def norm(x, scale):
    y = x.astype(jnp.float32)
    y = y - y.mean(axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.square(y).mean(axis=-1, keepdims=True) + 1e-6)
    return (y * scale.astype(jnp.float32)[None]).astype(x.dtype)


FUNCTIONS = {
    "product with a bias": (lambda x, w, b: x @ w + b[None], [(ROWS, 512), (512, 2048), (2048,)]),
    "GELU": (jax.nn.gelu, [(ROWS, 2048)]),
    "norm": (norm, [(ROWS, 512), (512,)]),
    "sum over rows": (lambda x: x.sum(0), [(ROWS, 1536)]),
}
REPLAYED_US = {
    "product with a bias": 231.0,
    "GELU": 120.0,
    "norm": 67.0,
    "sum over rows": 48.0,
}
"""Microseconds on v5e, libtpu 0.0.48.1."""


def alone(name):
    """Returns the microseconds of an operation alone on v5e, memory traffic aside: replayed, floor
    without a replay, ceiling without one.
    """
    function, shapes = FUNCTIONS[name]
    arrays = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
    found = operations(tpu_schedule.compile_for("v5e", function, *arrays).as_text() or "")
    found = [operation._replace(hbm_bytes=0) for operation in found]
    assert all(operation.cycles is not None for operation in found)
    replayed = sum(operation.cycles or 0 for operation in found) / (CHIPS["v5e"].clock_hz or 1)
    unknown = [operation._replace(cycles=None) for operation in found]
    return (
        replayed * 1e6,
        sum(floor_us("v5e", operation) for operation in unknown),
        sum(ceiling_us("v5e", operation) for operation in unknown),
    )


@pytest.mark.slow
@pytest.mark.tpu_compiler
def test_the_replay_of_lone_operations_is_as_recorded_and_as_the_model_says():
    process = CompilerProcess(replay=True)
    for name, recorded in REPLAYED_US.items():
        replayed, floor, ceiling = process.run(alone, name)
        assert replayed == pytest.approx(recorded, rel=0.1), name
        assert floor == pytest.approx(replayed, rel=0.25), name
        assert ceiling > 1.5 * replayed, name
    process.close()


def test_the_command_names_the_operations_that_are_replayed_here():
    for named, name in zip(REPLAYED_ALONE, REPLAYED_US, strict=True):
        assert named.startswith(name)
        _, shapes = FUNCTIONS[name]
        assert all(str(list(shape)) in named for shape in shapes if len(shape) > 1)


OPERATION = Operation(
    name="fusion.1",
    kind="fusion",
    times=1,
    cycles=None,
    estimated_cycles=150_000,
    hbm_bytes=819,
    product_flops=0,
    sums_rows=False,
    reads_hbm=True,
    source="",
)


def test_the_estimate_is_a_ceiling_and_less_than_all_of_it_counts_for_the_floor():
    assert ceiling_us("v5e", OPERATION) == pytest.approx(100)
    assert floor_us("v5e", OPERATION) == pytest.approx(25)
    of_rows = OPERATION._replace(sums_rows=True)
    assert floor_us("v5e", of_rows) == pytest.approx(100 / 3.2)
    assert floor_us("v5e", of_rows._replace(reads_hbm=False)) == pytest.approx(100 / 11)


def test_a_product_takes_its_flops_whatever_the_compiler_estimated():
    product = OPERATION._replace(product_flops=197_000_000)
    assert floor_us("v5e", product) == pytest.approx(1 / PRODUCT_SHARE["v5e"])


def test_no_operation_is_faster_than_its_memory_traffic_and_a_replay_counts_as_it_is():
    assert floor_us("v5e", OPERATION._replace(hbm_bytes=819_000_000)) == pytest.approx(1000)
    replayed = OPERATION._replace(cycles=15_000)
    assert floor_us("v5e", replayed) == ceiling_us("v5e", replayed) == pytest.approx(10)
