"""Guards the TPU kernels without a TPU: they compile for every chip, with its own block sizes, and
the compiler schedules them no slower than recorded.
"""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies

from m3ae_tpu.kernels.attention import attention, block_sizes
from m3ae_tpu.kernels.attention.shapes import ATTENTION
from m3ae_tpu.kernels.attention.tpu import call as attention_tpu
from m3ae_tpu.kernels.attention.tpu.stack import attention_in_stack, keep_stack
from m3ae_tpu.kernels.chips import CHIPS
from m3ae_tpu.measure import tpu_schedule
from m3ae_tpu.measure.hlo_text import operations

pytestmark = pytest.mark.tpu_compiler

ROOT = pathlib.Path(__file__).parents[2]
CYCLES = {"encoder_large": (1282, 3707), "decoder": (5542, 18166)}
"""Scheduled cycles a row on v5e, forward, forward and backward, libtpu 0.0.48.1. Lower them with
the kernel."""


def compiled(chip, shape, *, is_masked):
    """Returns the text of attention, forward and backward, compiled for a chip."""

    def both(qkv, dout, is_valid):
        mask = is_valid if is_masked else None
        out, pull_back = jax.vjp(lambda qkv: attention(qkv, mask, shape.num_heads), qkv)
        return out, pull_back(dout)[0]

    def array(*sizes, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct((8, shape.tokens, *sizes), dtype)

    tpu_schedule.prepare(replay=False)
    arrays = array(3 * shape.width), array(shape.width), array(dtype=jnp.bool)
    return tpu_schedule.compile_for(chip, both, *arrays).as_text() or ""


MARKS = {("v5e", "encoder_small"): [], ("v5e", "decoder"): pytest.mark.slow}


@pytest.mark.parametrize(
    ("chip", "name"),
    [
        pytest.param(chip, name, marks=MARKS.get((chip, name), pytest.mark.long))
        for chip, described in CHIPS.items()
        if described.topology
        for name in ATTENTION
    ],
)
def test_compiles_for_a_chip_that_is_not_here(chip, name):
    text = compiled(chip, ATTENTION[name], is_masked=True)
    assert text.count('custom_call_target="tpu_custom_call"') == 2


def single_device(chip):
    """Returns the sharding of one described device, which tells a traced function nothing."""
    tpu_schedule.prepare(replay=False)
    return jax.sharding.SingleDeviceSharding(tpu_schedule.device_mesh(chip).devices.flat[0])


@pytest.fixture
def kinds(monkeypatch):
    """Collects the device kinds whose block sizes the forward kernel looks up."""
    kinds = []

    def blocks_for(kernel, kind, *rest):
        kinds.append(kind)
        return block_sizes.blocks_for(kernel, kind, *rest)

    monkeypatch.setattr(attention_tpu, "blocks_for", blocks_for)
    return kinds


def test_the_chip_is_known_from_the_mesh_when_the_program_is_traced(kinds):
    tpu_schedule.prepare(replay=False)
    topology = topologies.get_topology_desc(platform="tpu", topology_name="v6e:2x2")
    mesh = jax.sharding.Mesh(np.array(topology.devices), ("data",))
    rows = jax.sharding.PartitionSpec("data")

    def alone(qkv):
        return attention(qkv * 2, None, 2)

    def on_mesh(qkv):
        return jax.shard_map(alone, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)(qkv)

    qkv = jax.ShapeDtypeStruct((8, 9, 384), jnp.bfloat16)
    sharded = jax.ShapeDtypeStruct(qkv.shape, qkv.dtype, sharding=jax.NamedSharding(mesh, rows))
    jax.jit(on_mesh).trace(sharded)
    jax.jit(alone).trace(sharded)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        jax.jit(alone).trace(qkv)
    jax.jit(lambda qkv: attention(qkv, None, 2, device_kind="TPU v6 lite")).trace(qkv)
    assert set(kinds) == {"TPU v6 lite"}


def test_a_sharding_without_a_mesh_takes_the_kernel_with_generic_block_sizes(kinds):
    qkv = jax.ShapeDtypeStruct((8, 9, 384), jnp.bfloat16, sharding=single_device("v6e"))
    text = jax.jit(lambda qkv: attention(qkv, None, 2)).lower(qkv).as_text()
    assert "tpu_custom_call" in text
    assert set(kinds) == {None}


@pytest.mark.parametrize("mask_axis", [0, None])
def test_vmap_compiles_for_a_described_chip_with_its_axis_in_the_batch(mask_axis):
    def loss(qkv, is_valid):
        mapped = jax.vmap(lambda qkv, mask: attention(qkv, mask, 2), (0, mask_axis))
        return mapped(qkv, is_valid).astype(jnp.float32).sum()

    where = single_device("v5e")
    qkv = jax.ShapeDtypeStruct((3, 2, 81, 3, 128), jnp.bfloat16, sharding=where)
    mask = (3, 2, 81) if mask_axis == 0 else (2, 81)
    is_valid = jax.ShapeDtypeStruct(mask, jnp.bool, sharding=where)
    with tpu_schedule.not_kept():
        text = jax.jit(jax.grad(loss)).lower(qkv, is_valid).compile().as_text() or ""
    assert text.count('custom_call_target="tpu_custom_call"') == 2
    assert "bf16[6,81,384]" in text


def test_layers_in_a_loop_keep_no_scores():
    # Without a mesh the choice between implementations is a branch. The residuals of the branches
    # that are not taken must not stay.
    def temporary_bytes(implementation):
        def loss(weights, x):
            def layer(x, weight):
                return x + attention(x @ weight, None, 4, implementation=implementation), None

            return jax.lax.scan(layer, x, weights)[0].astype(jnp.float32).sum()

        arrays = (3, 128, 384), (1, 128, 128)
        shapes = [
            jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=single_device("v5e"))
            for shape in arrays
        ]
        with tpu_schedule.not_kept():
            compiled = jax.jit(jax.grad(loss)).lower(*shapes).compile()
        memory = compiled.memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    tpu_schedule.prepare(replay=False)
    assert temporary_bytes("auto") == temporary_bytes("tpu")


def test_kernels_in_a_scan_take_the_stack_itself_and_read_one_layer_of_it():
    layers, rows, tokens, width = 4, 8, 81, 128

    def loss(weights, x):
        def layer(carry, weight_and_number):
            (x, stack), (weight, number) = carry, weight_and_number
            out, stack = attention_in_stack(x @ weight, stack, number, None, 4, device_kind="v5e")
            return (x + out, stack), None

        stack = jax.lax.empty((layers, rows, tokens, 3 * width), x.dtype)
        numbers = jnp.arange(layers, dtype=jnp.int32)
        (x, stack), _ = jax.lax.scan(layer, (x, stack), (weights, numbers))
        return keep_stack(x, stack).astype(jnp.float32).sum()

    where = single_device("v5e")
    shapes = (layers, width, 3 * width), (rows, tokens, width)
    arrays = [jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=where) for shape in shapes]
    with tpu_schedule.not_kept():
        text = jax.jit(jax.grad(loss)).lower(*arrays).compile().as_text() or ""
    found = operations(text)
    assert not any("squeeze" in line.source and "attention" in line.source for line in found)
    kernels = [line for line in found if line.source.endswith("pallas_call")]
    assert [line.times for line in kernels] == [layers, layers]
    layer_bytes = 2 * rows * 88 * 3 * width
    # Backward: queries, keys, values and their gradient, softmax terms, the output's gradient.
    assert all(line.hbm_bytes <= 2.6 * layer_bytes for line in kernels)


@pytest.mark.slow
@pytest.mark.parametrize("shape", CYCLES)
def test_is_scheduled_no_slower_than_recorded(shape, tmp_path):
    # In another process: libtpu reads the flag that counts cycles once, and some chips abort with
    # it.
    figures = tmp_path / "figures.json"
    command = [
        sys.executable,
        "-m",
        "pipelines.benchmark_kernels",
        "--against=",
        f"--shapes={shape}",
        f"--json={figures}",
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    scheduled = [row["cycles"] for row in json.loads(figures.read_text())]
    for cycles, recorded in zip(scheduled, CYCLES[shape], strict=True):
        assert cycles <= 1.05 * recorded
