"""Guards programs compiled for GPUs that are not here: devices by name, and products that are calls
of cuBLASLt.
"""

import importlib.util

import jax
import jax.numpy as jnp
import pytest

from m3ae_tpu.errors import UserError
from m3ae_tpu.kernels.chips import CHIPS, GPUS
from m3ae_tpu.measure import gpu_compiler


@pytest.mark.gpu_compiler
@pytest.mark.parametrize("chip", GPUS)
def test_a_product_with_bias_and_gelu_is_one_call_on_a_gpu_that_is_not_here(chip):
    def layer(x, kernel, bias):
        return jax.nn.gelu(x @ kernel + bias[None])

    shapes = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((64, 32), (32, 48), (48,))]
    compiled = gpu_compiler.compile_for(chip, layer, *shapes)
    text = compiled.as_text() or ""
    assert text.count('custom_call_target="__cublas$lt$matmul"') == 1
    assert "fusion(" not in text
    assert '"epilogue":"BIAS_GELU"' in text


@pytest.mark.gpu_compiler
def test_described_gpus_have_the_names_of_real_ones():
    mesh = gpu_compiler.described_gpu_mesh("h200", 8)
    assert mesh.size == 8
    assert {device.platform for device in mesh.devices.flat} == {"gpu"}
    assert {device.device_kind for device in mesh.devices.flat} == {CHIPS["h200"].device_kind}


def test_a_missing_compiler_is_named_with_its_installation(monkeypatch):
    def find_spec(name):
        if name == "nvidia.cu13":
            raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    with pytest.raises(
        UserError, match=r"nvidia\.cu13\) is not installed\. Run `make compile-gpu`"
    ):
        gpu_compiler.require_compiler()
