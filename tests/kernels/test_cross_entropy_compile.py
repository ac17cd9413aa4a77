"""Guards the text head on TPUs that are not here: little VMEM takes smaller blocks of ids."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from m3ae_tpu.kernels.chips import CHIPS
from m3ae_tpu.kernels.cross_entropy import cross_entropy, tpu
from m3ae_tpu.measure import tpu_schedule
from m3ae_tpu.parallel.mesh import BATCH, described_mesh

pytestmark = pytest.mark.tpu_compiler

ROWS, TOKENS, WIDTH, VOCAB = 32, 48, 512, 32_000
"""A chip's part of `m3ae_base`'s hidden words, where 128 chips share a batch of 4,096."""


def test_the_words_of_a_chip_fit_into_the_vmem_of_a_v4():
    tpu_schedule.prepare(replay=False)
    mesh = described_mesh("v4:2x2x1")
    rows = PartitionSpec(BATCH)
    whole = PartitionSpec()

    def shape(sizes, dtype, where):
        return jax.ShapeDtypeStruct(sizes, dtype, sharding=NamedSharding(mesh, where))

    batch = (ROWS * mesh.size, TOKENS)
    arguments = (
        shape((*batch, WIDTH), jnp.bfloat16, rows),
        shape((WIDTH, VOCAB), jnp.bfloat16, whole),
        shape((VOCAB,), jnp.float32, whole),
        shape(batch, jnp.int32, rows),
        shape(batch, jnp.bool, rows),
    )
    mapped = jax.shard_map(
        cross_entropy,
        mesh=mesh,
        in_specs=(rows, whole, whole, rows, rows),
        out_specs=rows,
        check_vma=False,
    )

    def gradients(*arguments):
        return jax.grad(lambda x, *rest: mapped(x, *rest).loss.mean())(*arguments)

    with tpu_schedule.not_kept():
        text = jax.jit(gradients).lower(*arguments).compile().as_text() or ""
    assert text.count('custom_call_target="tpu_custom_call"') == 2


@pytest.mark.parametrize("chip", ["v5e", "v5p", "v6e"])
def test_other_chips_take_whole_blocks(chip):
    kind = CHIPS[chip].device_kind
    assert tpu.unsupported_reason(8_192, WIDTH, jnp.dtype(jnp.bfloat16), kind) is None
    assert "do not fit into the VMEM of a v4" in (
        tpu.unsupported_reason(8_192, WIDTH, jnp.dtype(jnp.bfloat16), CHIPS["v4"].device_kind) or ""
    )
