"""Guards meshes compiled for TPUs: what is gathered, what tensors exchange, what fits."""

import dataclasses
import functools
import math
import re

import jax
import numpy as np
import pytest

from m3ae_tpu.config import MeshConfig, TransformerConfig
from m3ae_tpu.configs import debug, m3ae_large
from m3ae_tpu.measure import tpu_schedule
from m3ae_tpu.measure.rehearsal import compile_for
from m3ae_tpu.parallel.mesh import described_mesh
from m3ae_tpu.parallel.share import share_of

pytestmark = pytest.mark.tpu_compiler

CONFIG = dataclasses.replace(
    debug.CONFIG,
    batch_size=64,
    model=dataclasses.replace(
        debug.CONFIG.model,
        vocab_size=4096,
        compute_dtype="bfloat16",
        encoder=TransformerConfig(num_layers=3, width=512, num_heads=8),
        decoder=TransformerConfig(num_layers=3, width=256, num_heads=4),
    ),
)
KINDS = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"


@pytest.mark.parametrize(("tensor", "count"), [(1, 4), (2, 4), (4, 2), (8, 2), (16, 1)])
def test_processes_whose_devices_hold_the_same_rows_read_the_same_part(tensor, count):
    tpu_schedule.prepare(replay=False)
    mesh = described_mesh("v5e:4x4", None, MeshConfig(tensor=tensor))
    assert {device.process_index for device in mesh.devices.flat} == {0, 1, 2, 3}
    share = share_of(mesh)
    assert len(share.parts) * count == share.num_parts == 16 // tensor
    assert share.is_first
    assert share.parts[0] == 0


@functools.cache
def compiled(mesh):
    tpu_schedule.prepare(replay=False)
    config = dataclasses.replace(CONFIG, mesh=mesh)
    return compile_for(described_mesh("v5e:2x4", None, mesh), config, "ours")


def collectives(text):
    """Returns kind, dtype, sizes and scope of each collective, once each.

    An asynchronous one is printed in every computation that it overlaps with.
    """
    found = {}
    for line in text.splitlines():
        if match := re.search(rf"= (\S+|\(.*?\)) ({KINDS})(?:-start)?\(", line):
            shape = re.sub(r"\{[^}]*\}", "", match[1])
            channel = re.search(r"channel_id=(\d+)", line)
            scope = re.search(r'op_name="([^"]*)"', line)
            key = match[2], channel and channel[1], shape
            found[key] = max(found.get(key, ""), scope[1] if scope else "", key=len)
    for (kind, _, shape), scope in found.items():
        arrays = re.findall(r"(\w+)\[([\d,]*)\]", shape)
        sizes = [math.prod(map(int, filter(None, size.split(",")))) for _, size in arrays]
        yield kind, arrays[0][0], sizes, scope


@pytest.mark.slow
def test_fsdp_gathers_the_matrices_of_a_block_in_its_dtype_and_nothing_else_in_the_loop():
    text = compiled(MeshConfig(fsdp=4)).as_text()
    gathers = [
        (dtype, sizes[0])
        for kind, dtype, sizes, scope in collectives(text)
        if kind == "all-gather" and "while/body" in scope
    ]
    stacks = CONFIG.model.encoder, CONFIG.model.decoder
    matrices = [k * stack.width**2 for stack in stacks for k in (3, 1, 4, 4)]
    assert sorted(gathers) == sorted(("bf16", size) for size in 2 * matrices)


@pytest.mark.slow
def test_tensor_parallelism_adds_up_activations_twice_a_block_and_direction_and_moves_no_other():
    text = compiled(MeshConfig(tensor=2)).as_text()
    found = list(collectives(text))
    assert {kind for kind, *_ in found} == {"all-reduce"}
    rows = CONFIG.batch_size // 4
    sums = [
        sizes[0]
        for _, _, sizes, scope in found
        if "while/body" in scope and scope.endswith("dot_general") and len(sizes) == 1
    ]
    encoder, decoder = rows * 11 * 512, rows * 41 * 256
    assert sorted(sums) == sorted([encoder] * 4 + [decoder] * 4)


@pytest.mark.slow
def test_the_step_has_kernels_on_each_devices_own_rows_and_heads():
    for mesh in (MeshConfig(fsdp=4), MeshConfig(tensor=2)):
        text = compiled(mesh).as_text() or ""
        assert text.count('custom_call_target="tpu_custom_call"') == 6
        assert "Involuntary" not in text


@pytest.mark.long
def test_a_large_model_fits_with_fsdp_of_16_on_256_chips_without_remat():
    tpu_schedule.prepare(replay=False)
    mesh = MeshConfig(fsdp=16)
    config = dataclasses.replace(m3ae_large.CONFIG, mesh=mesh)
    assert config.batch_size == 4096
    assert not config.model.remat
    step = compile_for(described_mesh("v5e:16x16", None, mesh), config, "ours")
    analysis = step.memory_analysis()
    assert analysis is not None
    assert analysis.peak_memory_in_bytes <= 7 * 2**30
    parameters = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(step.in_avals[0][0].model))
    batch = 16 * (256 * 256 * 3 + 1 + 5 * 64)
    assert analysis.argument_size_in_bytes - batch <= 1.1 * 12 * parameters / 16
    assert analysis.output_size_in_bytes - analysis.alias_size_in_bytes < 2**14
