"""Guards the TPU kernels where no TPU is: they compile for every chip, and the compiler schedules
them no slower.
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
from m3ae_tpu.measure import tpu_schedule

pytestmark = pytest.mark.tpu_compiler

ROOT = pathlib.Path(__file__).parents[2]
CYCLES = {"forward": 1282, "forward + backward": 3707}
"""Scheduled cycles a row of `encoder_large` on v5e, libtpu 0.0.48.1. Lower them with the kernel."""


def compiled(chip, shape, *, masked):
    """Attention forward and backward, compiled for a chip; as text."""

    def both(qkv, dout, valid):
        mask = valid if masked else None
        out, pull_back = jax.vjp(lambda qkv: attention(qkv, mask, shape.num_heads), qkv)
        return out, pull_back(dout)[0]

    def array(*sizes, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct((8, shape.tokens, *sizes), dtype)

    tpu_schedule.prepare(replay=False)
    arrays = array(3 * shape.width), array(shape.width), array(dtype=jnp.bool)
    return tpu_schedule.compile_for(chip, both, *arrays).as_text() or ""


@pytest.mark.parametrize(
    ("chip", "name"),
    [
        pytest.param(
            chip, name, marks=[] if (chip, name) == ("v5e", "encoder_small") else pytest.mark.slow
        )
        for chip in tpu_schedule.CHIPS
        for name in ATTENTION
    ],
)
def test_compiles_for_a_chip_that_is_not_here(chip, name):
    text = compiled(chip, ATTENTION[name], masked=True)
    assert text.count('custom_call_target="tpu_custom_call"') == 2


def test_chip_is_known_when_the_program_is_lowered(monkeypatch):
    kinds = []

    def blocks_for(kernel, kind, *rest):
        kinds.append(kind)
        return block_sizes.blocks_for(kernel, kind, *rest)

    monkeypatch.setattr(attention_tpu, "blocks_for", blocks_for)
    tpu_schedule.prepare(replay=False)
    mesh = topologies.get_topology_desc(platform="tpu", topology_name="v6e:2x2")
    mesh = jax.sharding.Mesh(np.array(mesh.devices), ("data",))
    rows = jax.sharding.PartitionSpec("data")

    def on_mesh(qkv):
        return jax.shard_map(alone, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)(qkv)

    def alone(qkv):
        return attention(qkv, None, 2)

    single = jax.sharding.SingleDeviceSharding(mesh.devices.flat[0])
    for function, where in ((on_mesh, jax.NamedSharding(mesh, rows)), (alone, single)):
        qkv = jax.ShapeDtypeStruct((8, 9, 384), jnp.bfloat16, sharding=where)
        jax.jit(function).lower(qkv)
    with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
        jax.jit(alone).trace(jnp.zeros((8, 9, 384))).lower(lowering_platforms=("tpu",))
    jax.jit(alone).trace(jnp.zeros((8, 9, 384))).lower(lowering_platforms=("tpu",))
    assert kinds == ["TPU v6 lite", "TPU v6 lite", "TPU v6 lite", None]


def test_layers_in_a_loop_keep_no_scores():
    # The choice between implementations is a branch: what XLA's would keep for its gradient must
    # not stay.
    def temporary_bytes(implementation):
        def loss(weights, x):
            def layer(x, weight):
                return x + attention(x @ weight, None, 4, implementation=implementation), None

            return jax.lax.scan(layer, x, weights)[0].astype(jnp.float32).sum()

        arrays = (3, 128, 384), (1, 128, 128)
        shapes = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in arrays]
        compiled = tpu_schedule.compile_for("v5e", jax.grad(loss), *shapes)
        memory = compiled.memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    tpu_schedule.prepare(replay=False)
    assert temporary_bytes("auto") == temporary_bytes("tpu")


@pytest.mark.slow
def test_is_scheduled_no_slower_than_recorded(tmp_path):
    # In a process of its own: the flag that counts cycles is read once, and some chips abort with
    # it.
    figures = tmp_path / "figures.json"
    command = [
        sys.executable,
        "-m",
        "pipelines.benchmark_kernels",
        "--against=",
        f"--json={figures}",
    ]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    forward, both = json.loads(figures.read_text())
    assert forward["cycles"] <= 1.05 * CYCLES["forward"]
    assert both["cycles"] <= 1.05 * CYCLES["forward + backward"]
