"""Guards the TPU kernels where no TPU is: they compile for every chip, and the compiler schedules them no slower."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from m3ae_tpu.kernels import scheduled_cost
from m3ae_tpu.kernels.attention import attention
from m3ae_tpu.kernels.shapes import ATTENTION

pytest.importorskip("libtpu", reason="needs libtpu: pip install -e '.[compile-tpu]'")

ROOT = pathlib.Path(__file__).parents[1]
CYCLES = {"forward": 1225, "forward + backward": 3558}
"""Scheduled cycles a row of `encoder_large` on v5e, libtpu 0.0.48.1. Lower them with the kernel."""


def compiled(chip, shape, *, masked):
    """Attention forward and backward, compiled for a chip; as text."""

    def both(qkv, dout, valid):
        mask = valid if masked else None
        out, pull_back = jax.vjp(lambda qkv: attention(qkv, mask, shape.num_heads), qkv)
        return out, pull_back(dout)[0]

    def array(*sizes, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct((8, shape.tokens, *sizes), dtype)

    scheduled_cost.prepare(replay=False)
    arrays = array(3 * shape.width), array(shape.width), array(dtype=jnp.bool)
    return scheduled_cost.compile_for(chip, both, *arrays).as_text() or ""


@pytest.mark.parametrize(
    ("chip", "name"),
    [
        pytest.param(chip, name, marks=[] if (chip, name) == ("v5e", "encoder_small") else pytest.mark.slow)
        for chip in scheduled_cost.CHIPS
        for name, shape in ATTENTION.items()
        if chip != "v4" or shape.tokens <= 128  # More does not fit into a v4.
    ],
)
def test_compiles_for_a_chip_that_is_not_here(chip, name):
    text = compiled(chip, ATTENTION[name], masked=True)
    assert text.count('custom_call_target="tpu_custom_call"') == 2


@pytest.mark.slow
def test_is_scheduled_no_slower_than_recorded(tmp_path):
    # In a process of its own: the flag that counts cycles is read once, and some chips abort with it.
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "pipelines.benchmark_kernels", "--against=", f"--json={figures}"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    forward, both = json.loads(figures.read_text())
    assert forward["cycles"] <= 1.05 * CYCLES["forward"]
    assert both["cycles"] <= 1.05 * CYCLES["forward + backward"]
