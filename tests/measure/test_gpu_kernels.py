"""Guards the reader of programs that are compiled for GPUs, and the model of their time."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

from m3ae_tpu.configs import m3ae_base
from m3ae_tpu.kernels.attention import attention
from m3ae_tpu.kernels.chips import CHIPS
from m3ae_tpu.measure import gpu_kernels, gpu_step_cost
from m3ae_tpu.measure.gpu_compiler import compile_for
from m3ae_tpu.measure.gpu_kernels import ATTENTION, ATTENTION_BACKWARD, PRODUCT
from m3ae_tpu.model.rewrites import gelu_of_kept_input, standardize


def shape(*sizes, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(sizes, dtype)


@functools.cache
def kernels(function, *shapes):
    return gpu_kernels.kernels(compile_for("h100", function, *shapes).as_text() or "")


@pytest.mark.gpu_compiler
def test_a_product_counts_by_its_flops_and_arrays():
    (kernel,) = kernels(lambda x, kernel: x @ kernel, shape(64, 32), shape(32, 48))
    assert kernel.kind == PRODUCT
    assert kernel.flops == 2 * 64 * 32 * 48
    assert (kernel.read_bytes, kernel.written_bytes) == (2 * (64 * 32 + 32 * 48), 2 * 64 * 48)


@pytest.mark.gpu_compiler
def test_of_a_sliced_array_the_slice_is_read_and_a_loop_runs_its_kernels_each_time():
    def add_up(x):
        return jax.lax.fori_loop(0, 5, lambda step, total: jnp.sin(total) + x[step], x[0])

    found = kernels(add_up, shape(5, 4096, dtype=jnp.float32))
    row = 4 * 4096
    assert sum(kernel.times for kernel in found if kernel.bytes >= 3 * row) == 5
    assert all(kernel.bytes < 4 * row for kernel in found)


@pytest.mark.gpu_compiler
def test_the_gradient_of_a_norm_is_one_kernel_beside_the_residual_sum():
    def gradient(x, dy, residual):
        return jax.vjp(lambda x: standardize(x, 1e-6), x)[1](dy)[0] + residual

    x = shape(8, 257, 512)
    (kernel,) = kernels(gradient, x, x, x)
    assert kernel.bytes == 4 * 2 * 8 * 257 * 512


@pytest.mark.gpu_compiler
def test_a_product_computes_gelu_and_keeps_its_input_and_nothing_else():
    def mlp(x, w1, b1, w2, dy):
        def apply(x):
            hidden = x @ w1 + b1[None]
            return gelu_of_kept_input(hidden, lambda x: jax.nn.gelu(x, approximate=True)) @ w2

        y, pull_back = jax.vjp(apply, x)
        return y, pull_back(dy)

    width, hidden, rows = 128, 512, 4096
    x = shape(rows, width)
    found = kernels(mlp, x, shape(width, hidden), shape(hidden), shape(hidden, width), x)
    assert [kernel.epilogue for kernel in found].count("BIAS_GELU_AUX") == 1
    written = [sizes for kernel in found for _, sizes in kernel.results if sizes == (rows, hidden)]
    # GELU, its input, and the gradients of both.
    assert len(written) == 4


@pytest.mark.gpu_compiler
@pytest.mark.parametrize("is_masked", [False, True])
def test_cudnn_takes_three_arrays_of_an_odd_number_of_tokens(is_masked):
    kind = CHIPS["h100"].device_kind

    def both(query, key, value, dout, is_valid):
        def attend(*parts):
            return attention(parts, is_valid if is_masked else None, 4, device_kind=kind)

        out, pull_back = jax.vjp(attend, query, key, value)
        return out, pull_back(dout)

    array = shape(4, 65, 256)
    found = kernels(both, *[array] * 4, shape(4, 65, dtype=jnp.bool))
    assert [kernel.kind for kernel in found].count(ATTENTION) == 1
    assert [kernel.kind for kernel in found].count(ATTENTION_BACKWARD) == 1
    if not is_masked:
        assert len(found) == 2


def test_cudnn_times_are_those_of_the_trace_and_grow_with_the_sizes():
    images = dataclasses.replace(
        m3ae_base.CONFIG,
        batch_size=256,
        data=dataclasses.replace(
            m3ae_base.CONFIG.data,
            sources=(dataclasses.replace(m3ae_base.CONFIG.data.sources[0], kind="image"),),
        ),
    )
    traced = gpu_step_cost.cudnn_ms(images, "h100")
    assert traced == pytest.approx({"encoder: attention": 4.0, "decoder: attention": 13.0}, 0.01)
    pairs = dataclasses.replace(m3ae_base.CONFIG, batch_size=256)
    assert all(gpu_step_cost.cudnn_ms(pairs, "h100")[name] > ms for name, ms in traced.items())
    assert all(gpu_step_cost.cudnn_ms(images, "a100")[name] > ms for name, ms in traced.items())


def test_a_kernel_takes_the_longer_of_its_products_and_its_traffic():
    kernel = gpu_kernels.Kernel("dot", PRODUCT, 1, 0, 0, 10**12, "", [], "")
    moved = kernel._replace(flops=0, read_bytes=10**9, written_bytes=10**9)
    assert gpu_step_cost.seconds("h100", kernel) == pytest.approx(1e12 / (0.76 * 989e12))
    assert gpu_step_cost.seconds("h100", moved) == pytest.approx(2e9 / 2.25e12)
    assert gpu_step_cost.seconds("h200", moved) < gpu_step_cost.seconds("h100", moved)
