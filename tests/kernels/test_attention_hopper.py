"""Guards attention on Hopper GPUs without one: the kernels against float64 in the interpreter, and
what the assembler makes of them.
"""

import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np
import pytest
from gpu_code import BINARIES, compile_attention, issue_microseconds
from test_attention import errors, exact, inputs, out_and_gradients

from m3ae_tpu.kernels.attention import attention

INTERPRETED = plgpu.InterpretGPUParams(uninitialized_memory="nan")
MOST_INSTRUCTIONS = {"forward": 4600, "backward": 14200}
"""Instructions that a warp issues for a head of 32 of a row of 257 tokens. Lower them with the
kernels.
"""
NEEDS_DISASSEMBLER = pytest.mark.skipif(
    not (BINARIES / "nvdisasm").exists(), reason="needs NVIDIA's disassembler: make compile-gpu"
)


def interpreted(qkv, is_valid, num_heads, dout):
    """Runs the kernels on this CPU; uninitialised memory is NaN."""

    def function(qkv):
        return attention(qkv, is_valid, num_heads, implementation="hopper")

    with plgpu.force_gpu_interpret_mode(INTERPRETED):
        return out_and_gradients(function, qkv, dout)


def check(tokens, head_dim, spread, *, is_masked):
    qkv, is_valid, dout = inputs(tokens, head_dim, jnp.bfloat16, num_heads=1, spread=spread)
    if is_masked:
        qkv, is_valid, dout = qkv[::2], is_valid[::2], dout[::2]
    else:
        qkv, is_valid, dout = qkv[:1], None, dout[:1]
    want, kernel = exact(qkv, is_valid, 1, dout), interpreted(qkv, is_valid, 1, dout)
    plain = out_and_gradients(
        lambda qkv: attention(qkv, is_valid, 1, implementation="xla"), qkv, dout
    )
    for ours, theirs in zip(errors(kernel, want), errors(plain, want), strict=True):
        assert ours <= 1.1 * theirs
    if is_masked:  # Row 0 has no valid key.
        for array in kernel:
            np.testing.assert_array_equal(array[0], 0.0)


SHAPES = [
    (33, 32, 22),
    (65, 32, 22),
    (65, 64, 1),
    (81, 32, 1),
    (81, 64, 22),
    (257, 32, 1),
    (257, 64, 500),
    (321, 32, 500),
    (321, 64, 1),
    (512, 64, 22),
]


@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize(
    ("tokens", "head_dim", "spread"),
    [
        pytest.param(*shape, marks=pytest.mark.slow if shape[0] <= 65 else pytest.mark.long)
        for shape in SHAPES
    ],
)
def test_shapes_of_models_are_as_exact_as_xla(tokens, head_dim, spread, is_masked):
    check(tokens, head_dim, spread, is_masked=is_masked)


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((1, 513, 3, 32), jnp.bfloat16, "tokens = 513 is more than 512"),
        ((1, 8, 3, 48), jnp.bfloat16, "a head's width of 48 is neither 32 nor 64"),
        ((1, 8, 3, 32), jnp.float32, "dtype = float32 is not bfloat16"),
    ],
)
def test_what_is_not_supported_is_named(shape, dtype, message):
    with pytest.raises(NotImplementedError, match=message):
        attention(jnp.zeros(shape, dtype), None, 1, implementation="hopper")


@pytest.mark.slow
@pytest.mark.gpu_compiler
@NEEDS_DISASSEMBLER
def test_the_decoders_kernels_issue_in_little_time_and_spill_nothing(tmp_path):
    kernels = compile_attention(tmp_path, 257, 16, 32, is_masked=False)
    issued = {}
    for name, kernel in zip(("forward", "backward"), kernels, strict=True):
        assert kernel.spilled_bytes == 0
        assert 2 * (kernel.shared_bytes + 1024) <= 228 * 1024  # Two programs a multiprocessor.
        # 257 tokens are 5 tiles of 64; the loop takes all parts of 96 but the last.
        issued[name] = kernel.issued(tiles=5, parts=2)
        assert issued[name] <= MOST_INSTRUCTIONS[name]
    assert issue_microseconds(sum(issued.values()), heads=16) <= 1.3


@pytest.mark.gpu_compiler
@NEEDS_DISASSEMBLER
@pytest.mark.parametrize(
    ("tokens", "head_dim", "is_masked"),
    [
        pytest.param(65, 64, False, marks=pytest.mark.long),
        pytest.param(81, 64, True, marks=pytest.mark.long),
        pytest.param(257, 64, False, marks=pytest.mark.long),
        pytest.param(321, 32, True, marks=pytest.mark.long),
        pytest.param(321, 64, True, marks=pytest.mark.slow),
    ],
)
def test_registers_suffice_for_every_shape(tmp_path, tokens, head_dim, is_masked):
    for kernel in compile_attention(tmp_path, tokens, 12, head_dim, is_masked=is_masked):
        assert kernel.spilled_bytes == 0
        assert kernel.shared_bytes <= 227 * 1024
