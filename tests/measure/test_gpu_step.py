"""Guards the train step compiled for GPUs that are not here: kernels, bytes and collectives."""

import collections
import dataclasses
import functools
import math

import jax
import pytest

from m3ae_tpu.config import TransformerConfig
from m3ae_tpu.configs import m3ae_base
from m3ae_tpu.measure import gpu_kernels, gpu_step_benchmark, gpu_step_cost
from m3ae_tpu.measure.gpu_compiler import OPTIONS, described_gpu_mesh
from m3ae_tpu.measure.gpu_kernels import ATTENTION, ATTENTION_BACKWARD, COLLECTIVE
from m3ae_tpu.measure.rehearsal import config_batch_shapes, step_functions
from m3ae_tpu.measure.tpu_schedule import not_kept

pytestmark = [pytest.mark.gpu_compiler, pytest.mark.slow]

WIDTH, ROWS, PATCHES = 64, 8, 16
HIDDEN = 4 * WIDTH
STACK = TransformerConfig(num_layers=1, width=WIDTH, num_heads=2)
CONFIG = dataclasses.replace(
    m3ae_base.CONFIG,
    batch_size=ROWS,
    model=dataclasses.replace(m3ae_base.CONFIG.model, vocab_size=0, encoder=STACK, decoder=STACK),
    data=dataclasses.replace(
        m3ae_base.CONFIG.data,
        image_size=64,
        sources=(dataclasses.replace(m3ae_base.CONFIG.data.sources[0], kind="image"),),
    ),
)
"""A step of images through one block in encoder and decoder each."""


@functools.cache
def compiled(num_devices):
    init, step = step_functions(described_gpu_mesh("h100", num_devices), CONFIG, "ours")
    with not_kept():
        lowered = step.lower(jax.eval_shape(init), config_batch_shapes(CONFIG))
        return lowered.compile(compiler_options=OPTIONS)


def test_a_step_runs_no_more_kernels_and_writes_no_more_arrays():
    found = gpu_kernels.kernels(compiled(1).as_text() or "")
    counts = collections.Counter(kernel.kind for kernel in found)
    assert counts[ATTENTION] == counts[ATTENTION_BACKWARD] == 2
    epilogues = collections.Counter(kernel.epilogue for kernel in found)
    assert epilogues["BIAS_GELU_AUX"] == 2
    for tokens in (1 + PATCHES // 4, 1 + PATCHES):
        hidden = ROWS * tokens * HIDDEN
        written = sum(
            1
            for kernel in found
            for _, sizes in kernel.results
            if len(sizes) > 1 and sizes[-1] == HIDDEN and math.prod(sizes) == hidden
        )
        # GELU, its input, and the gradients of both.
        assert written == 4
        # Products add residuals to their results without a copy of them.
        residual = ROWS * tokens * WIDTH
        copies = [kernel for kernel in found if kernel.kind == "copy"]
        assert all(math.prod(kernel.results[0][1]) != residual for kernel in copies)
    assert sum(kernel.times for kernel in found) <= 400
    assert not any(kernel.kind == COLLECTIVE for kernel in found)


def test_the_table_shows_the_components_of_a_step(monkeypatch, capsys):
    def modelled(config, chip, kernels):
        return gpu_step_cost.cost_of_compiled(config, chip, compiled(1))

    monkeypatch.setattr(gpu_step_benchmark, "modelled_step", modelled)
    step = gpu_step_benchmark.model_steps(CONFIG, ["ours"], "h100")["ours"]
    assert "without cuDNN" in capsys.readouterr().out
    assert step["ms"] > step["without_attention_ms"] > 0
    assert step["temporary_bytes"] < step["peak_bytes"]
    assert step["components"]["encoder: attention"]["cudnn_ms"] > 0


def test_two_gpus_add_up_gradients_and_exchange_nothing_else():
    found = gpu_kernels.kernels(compiled(2).as_text() or "")
    exchanges = [kernel for kernel in found if kernel.kind == COLLECTIVE]
    names = {kernel.name.split(".")[0].removesuffix("-start") for kernel in exchanges}
    assert names == {"all-reduce"}
    assert len(exchanges) <= 4
