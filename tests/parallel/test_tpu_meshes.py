"""Guards meshes compiled for TPUs: what is gathered, what tensors exchange, what fits."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

from m3ae_tpu.config import MeshConfig, TransformerConfig
from m3ae_tpu.configs import debug, m3ae_large
from m3ae_tpu.measure import tpu_schedule
from m3ae_tpu.measure.rehearsal import compile_for
from m3ae_tpu.parallel.mesh import described_mesh
from m3ae_tpu.parallel.share import share_of
from m3ae_tpu.rehearsal.collectives import BETWEEN_SLICES, collectives
from m3ae_tpu.rehearsal.compiled import compile_step_for
from m3ae_tpu.rehearsal.topologies import parse_slice

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
def step_text(mesh):
    tpu_schedule.prepare(replay=False)
    config = dataclasses.replace(CONFIG, mesh=mesh)
    return compile_for(described_mesh("v5e:2x4", None, mesh), config, "ours").as_text() or ""


def exchanged(mesh):
    data = 8 // (mesh.fsdp * mesh.tensor)
    axes = {"data": data, "fsdp": mesh.fsdp, "tensor": mesh.tensor}
    return collectives(step_text(mesh), axes)


@pytest.mark.slow
def test_fsdp_gathers_the_matrices_of_a_block_in_its_dtype_and_nothing_else_in_the_loop():
    found = exchanged(MeshConfig(fsdp=4))
    gathers = [line for line in found if line.kind == "all-gather" and line.is_in_loop]
    stacks = CONFIG.model.encoder, CONFIG.model.decoder
    matrices = [2 * k * stack.width**2 for stack in stacks for k in (3, 1, 4, 4)]
    assert sorted(line.bytes for line in gathers) == sorted(2 * matrices)
    assert {(line.axis, line.dtypes, line.times) for line in gathers} == {("fsdp", "bf16", 3)}
    assert {line.kind for line in found} == {"all-gather", "reduce-scatter", "all-reduce"}


@pytest.mark.long
def test_float32_sums_of_gradients_have_no_exception_and_gathers_stay_narrow():
    mesh = MeshConfig(fsdp=4, gradient_sums="float32")
    for line in exchanged(mesh):
        if line.kind != "all-gather" and "transpose(" in line.source:
            assert line.dtypes == "f32", line
        if line.kind == "all-gather" and line.is_in_loop:
            assert line.dtypes == "bf16", line


@pytest.mark.slow
def test_tensor_parallelism_adds_up_activations_twice_a_block_and_direction_and_moves_no_other():
    found = exchanged(MeshConfig(tensor=2))
    assert {line.kind for line in found} == {"all-reduce"}
    sums = [line.bytes for line in found if line.is_in_loop and line.axis == "tensor"]
    rows = CONFIG.batch_size // 4
    encoder, decoder = 2 * rows * 11 * 512, 2 * rows * 41 * 256
    assert sorted(sums) == sorted([encoder] * 4 + [decoder] * 4)


@pytest.mark.long
def test_all_three_axes_together_exchange_no_more_than_each():
    found = exchanged(MeshConfig(fsdp=2, tensor=2))
    assert {line.kind for line in found} == {"all-gather", "reduce-scatter", "all-reduce"}
    assert {line.axis for line in found if line.kind != "all-reduce"} == {"fsdp"}
    in_loop = [line for line in found if line.is_in_loop]
    assert {line.axis for line in in_loop} <= {"fsdp", "tensor", "data", "data+fsdp"}
    assert sum(line.axis == "tensor" for line in in_loop) == 8


@pytest.mark.slow
def test_sums_of_gradients_alone_cross_from_slice_to_slice():
    tpu_schedule.prepare(replay=False)
    model = dataclasses.replace(debug.CONFIG.model, compute_dtype="bfloat16")
    config = dataclasses.replace(debug.CONFIG, model=model, mesh=MeshConfig(fsdp=4))
    step = compile_step_for(config, parse_slice("v5e:2x2x2slices"))
    assert step.mesh == {"data": 2, "fsdp": 4, "tensor": 1}
    crossing = [line for line in step.collectives if line.axis == BETWEEN_SLICES]
    assert {line.kind for line in crossing} == {"all-reduce"}
    # A chip sends its share of the gradients, most of which are those of the words.
    assert sum(line.bytes for line in crossing) <= 1.3 * step.parameter_bytes
    assert {line.axis for line in step.collectives} == {"fsdp", BETWEEN_SLICES}


@pytest.mark.slow
def test_the_step_has_kernels_on_each_devices_own_rows_and_heads():
    for mesh in (MeshConfig(fsdp=4), MeshConfig(tensor=2)):
        text = step_text(mesh)
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
