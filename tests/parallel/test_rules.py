"""Guards the table of cuts: each rule is used, nothing large stays whole, what cannot be cut is
refused.
"""

import dataclasses
import functools
import math

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P

from m3ae_tpu.config import MeshConfig
from m3ae_tpu.config.checks import FieldError
from m3ae_tpu.configs import finetune_mae_base, m3ae_base, m3ae_huge, m3ae_large, m3ae_small
from m3ae_tpu.errors import UserError
from m3ae_tpu.finetuning.objective import finetuning
from m3ae_tpu.parallel.mesh import AXES, filled, make_mesh
from m3ae_tpu.parallel.rules import LARGE_BYTES, RULES, rule_of, spec, state_shardings
from m3ae_tpu.train.optimizer import make_optimizer
from m3ae_tpu.train.pretraining import init_model
from m3ae_tpu.train.program import make_program
from m3ae_tpu.train.step import init_state

CONFIGS = {
    module.__name__.rpartition(".")[2]: module.CONFIG
    for module in (m3ae_small, m3ae_base, m3ae_large, m3ae_huge)
}


def mesh_of(data, fsdp, tensor):
    return AbstractMesh((data, fsdp, tensor), AXES, axis_types=(AxisType.Auto,) * 3)


@functools.cache
def state_of(name):
    """Returns a config's abstract state: with stored positions, or 1,000 classes."""
    if name == "finetune_mae_base":
        config = dataclasses.replace(
            finetune_mae_base.CONFIG, classes=tuple(f"class {number}" for number in range(1_000))
        )
        program = make_program(config, finetuning(config), make_mesh())
        return program.abstract
    config = CONFIGS[name]
    model = dataclasses.replace(
        config.model,
        stored_image_positions=256,
        stored_decoder_positions=256,
        stored_text_positions=64,
    )
    optimizer, _ = make_optimizer(config.optimizer, batch_size=4096, num_steps=100)
    return jax.eval_shape(lambda: init_state(init_model(model, 0), optimizer))


def leaves_of(name, mesh):
    """Yields name, bytes in all and on a device, for each array of the state."""
    state = state_of(name)
    shardings = jax.tree.leaves(state_shardings(state, mesh))
    for (path, leaf), sharding in zip(
        jax.tree_util.tree_leaves_with_path(state), shardings, strict=True
    ):
        own = sharding.shard_shape(leaf.shape)
        sizes = (math.prod(shape) * leaf.dtype.itemsize for shape in (leaf.shape, own))
        yield jax.tree_util.keystr(path, simple=True, separator="."), *sizes


def test_every_rule_is_the_rule_of_a_parameter_and_of_its_moments():
    names = [
        name
        for config in ("m3ae_base", "finetune_mae_base")
        for name, *_ in leaves_of(config, mesh_of(1, 1, 1))
    ]
    for rule in RULES:
        found = [name for name in names if rule_of(name) == rule]
        assert any(name.startswith("model.") for name in found), rule
        assert any(".mu." in name for name in found), rule
        assert any(".nu." in name for name in found), rule


@pytest.mark.parametrize("name", [*CONFIGS, "finetune_mae_base"])
def test_fsdp_cuts_every_array_over_a_mebibyte(name):
    for leaf, whole, own in leaves_of(name, mesh_of(16, 16, 1)):
        assert own == whole // 16 if whole > LARGE_BYTES else own in (whole, whole // 16), leaf


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_and_moments_on_256_chips_are_within_a_tenth_of_an_even_split(name):
    leaves = list(leaves_of(name, mesh_of(16, 16, 1)))
    ideal = sum(whole for _, whole, _ in leaves) / 16
    assert sum(own for *_, own in leaves) <= 1.1 * ideal


@pytest.mark.parametrize("name", CONFIGS)
def test_no_mesh_cuts_the_axis_of_a_stack(name):
    shardings = state_shardings(state_of(name), mesh_of(2, 2, 2))
    for stack in (shardings.model.encoder.blocks, shardings.model.decoder.blocks):
        for sharding in jax.tree.leaves(stack):
            assert not sharding.spec or sharding.spec[0] is None


def test_heads_channels_and_vocabulary_are_cut_where_megatron_cuts_them():
    model = state_shardings(state_of("m3ae_base"), mesh_of(2, 2, 2)).model
    blocks = model.encoder.blocks
    assert blocks.attention_in.kernel.spec == P(None, "fsdp", None, "tensor")
    assert blocks.attention_in.bias.spec == P(None, None, "tensor")
    assert blocks.attention_out.kernel.spec == P(None, "tensor", "fsdp")
    assert blocks.attention_out.bias.spec == P()
    assert blocks.mlp_in.kernel.spec == P(None, "fsdp", "tensor")
    assert blocks.mlp_in.bias.spec == P(None, "tensor")
    assert blocks.mlp_out.kernel.spec == P(None, "tensor", "fsdp")
    assert model.text.embedding.table.spec == P(("tensor", "fsdp"), None)
    assert model.text.head.kernel.spec == P("fsdp", "tensor")


@pytest.mark.parametrize(
    ("name", "shape", "mesh", "wanted"),
    [
        # The preferred axis, then the longest other one that divides, also where it is cut already.
        ("blocks.mlp_in.kernel", (2, 12, 32), (1, 4, 1), P(None, "fsdp", "tensor")),
        ("blocks.mlp_in.kernel", (2, 12, 32), (1, 8, 1), P(None, None, ("tensor", "fsdp"))),
        ("blocks.mlp_in.kernel", (2, 12, 32), (1, 8, 2), P(None, None, ("tensor", "fsdp"))),
        ("image.embedding.kernel", (10, 16), (1, 4, 1), P(None, "fsdp")),
        ("text.embedding.table", (32_000, 512), (1, 16, 2), P(("tensor", "fsdp"), None)),
        ("text.embedding.table", (30_522, 512), (1, 16, 2), P("tensor", "fsdp")),
        # A small one that nothing divides stays whole.
        ("blocks.mlp_in.kernel", (2, 12, 36), (1, 7, 1), P(None, None, "tensor")),
        # One layer of a stack has the cut of the stack.
        ("blocks.mlp_in.kernel", (12, 32), (1, 4, 1), P("fsdp", "tensor")),
        ("encoder.norm.scale", (1 << 20,), (1, 4, 2), P()),
    ],
)
def test_an_axis_that_does_not_divide_leaves_the_cut_to_another(name, shape, mesh, wanted):
    assert spec(name, shape, 4, mesh_of(*mesh)) == wanted


@pytest.mark.parametrize(
    ("name", "shape", "mesh", "message"),
    [
        (
            "encoder.blocks.mlp_in.kernel",
            (12, 768, 3072),
            (1, 5, 1),
            r"mesh\.fsdp = 5 divides no axis of encoder\.blocks\.mlp_in\.kernel .* divisor of 768",
        ),
        (
            "text.head.kernel",
            (512, 30_522),
            (1, 1, 4),
            r"mesh\.tensor = 4 does not divide axis 1 of text\.head\.kernel .* of 30522",
        ),
    ],
)
def test_a_large_matrix_that_cannot_be_cut_is_refused(name, shape, mesh, message):
    with pytest.raises(UserError, match=message):
        spec(name, shape, 4, mesh_of(*mesh))


@pytest.mark.parametrize(
    ("sizes", "devices", "wanted"),
    [
        ({}, 8, (8, 1, 1)),
        ({"fsdp": 4}, 8, (2, 4, 1)),
        ({"data": 1, "fsdp": -1}, 8, (1, 8, 1)),
        ({"data": 2, "tensor": -1}, 8, (2, 1, 4)),
        ({"fsdp": 2, "tensor": 2}, 8, (2, 2, 2)),
    ],
)
def test_minus_one_takes_the_devices_that_are_left(sizes, devices, wanted):
    config = filled(MeshConfig(**sizes), devices)
    assert (config.data, config.fsdp, config.tensor) == wanted
    assert tuple(make_mesh(MeshConfig(**sizes)).shape.values()) == wanted


@pytest.mark.parametrize(
    ("sizes", "slices", "message"),
    [
        ({"fsdp": 3}, 1, r"mesh\.fsdp = 3 x mesh\.tensor = 1 does not divide the 8 devices"),
        ({"data": 2, "fsdp": 2}, 1, r"mesh\.data = 2 .* is 4, and there are 8 devices"),
        ({"data": 16}, 1, r"is 16, and there are 8 devices"),
        ({"data": 1, "fsdp": 8}, 2, r"mesh\.data = 1 does not divide over 2 slices"),
    ],
)
def test_sizes_that_do_not_fit_the_devices_are_refused(sizes, slices, message):
    with pytest.raises(UserError, match=message):
        filled(MeshConfig(**sizes), 8, slices)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"fsdp": 0}, "fsdp = 0 is neither positive nor -1"),
        ({"data": -2}, "data = -2 is neither positive nor -1"),
        ({"fsdp": -1}, "fsdp = -1 is -1 beside another -1"),
    ],
)
def test_sizes_that_cannot_work_are_refused_by_the_config(sizes, message):
    with pytest.raises(FieldError, match=message):
        MeshConfig(**sizes)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (
            5,
            r"mesh\.tensor = 5 does not divide model\.encoder\.num_heads = 12. Set --mesh.tensor=1",
        ),
        (12, r"mesh\.tensor = 12 does not divide model\.decoder\.num_heads = 16. .*tensor=4"),
    ],
)
def test_heads_that_do_not_divide_are_refused(tensor, message):
    with pytest.raises(FieldError, match=message):
        dataclasses.replace(m3ae_base.CONFIG, mesh=MeshConfig(tensor=tensor))
