"""Guards the train step compiled for described TPUs: it holds kernels, and exchanges no more."""

import dataclasses
import json
import math
import pathlib
import re
import subprocess
import sys

import pytest

from m3ae_tpu.configs import debug
from m3ae_tpu.measure import tpu_schedule
from m3ae_tpu.measure.rehearsal import compile_for
from m3ae_tpu.parallel.mesh import described_mesh

ROOT = pathlib.Path(__file__).parents[2]

pytestmark = pytest.mark.tpu_compiler


def test_kernels_are_inside_and_devices_exchange_nothing_more():
    model = dataclasses.replace(
        debug.CONFIG.model,
        vocab_size=256,
        encoder=dataclasses.replace(debug.CONFIG.model.encoder, width=128),
        decoder=dataclasses.replace(debug.CONFIG.model.decoder, width=128),
        compute_dtype="bfloat16",
    )
    config = dataclasses.replace(debug.CONFIG, model=model)
    tpu_schedule.prepare(replay=False)
    mesh = described_mesh("v5e:2x2", 4)
    ours, plain = (
        compile_for(mesh, config, kernels).as_text() or "" for kernels in ("ours", "xla")
    )
    calls = [text.count('custom_call_target="tpu_custom_call"') for text in (ours, plain)]
    assert calls == [6, 0]  # Encoder, decoder and text head, forward and backward.
    assert collectives(ours) == collectives(plain)
    assert collectives(ours)


@pytest.mark.slow
def test_a_step_is_scheduled_component_by_component(tmp_path):
    figures = tmp_path / "figures.json"
    command = [sys.executable, "-m", "pipelines.benchmark_step", "--config=debug", "--rows=16"]
    command += ["--static=v5e", "--model.compute_dtype=bfloat16", f"--json={figures}"]
    command += ["--model.encoder.width=128", "--model.decoder.width=128"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    step = json.loads(figures.read_text())
    for kernels in ("ours", "xla"):
        components = step[kernels]["components"]
        assert components["encoder: attention"]["floor_us"] > 0
        assert components["rest"]["floor_us"] < 0.25 * step[kernels]["floor_us"]
        assert step[kernels]["floor_us"] < step[kernels]["ceiling_us"]
    assert [kernel["component"] for kernel in step["kernels"]] == [
        "text head, loss",
        "encoder: attention",
        "decoder: attention",
    ]
    printed = " ".join(done.stdout.split())
    for kernel in step["kernels"]:
        assert f"{kernel['component']}: {kernel['us'] / 1e3:.2f} ms, {kernel['name']}." in printed
    for name in step["replayed_alone"]:
        assert f"by the replay of one alone on v5e: {name}." in printed


def collectives(text):
    """Kind, dtype and size of every array that a compiled program's devices exchange, sorted."""
    kinds = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
    found = re.findall(rf"= (\S+|\(.*?\)) ({kinds})(?:-start)?\(", text)
    # One operation may exchange several arrays, in an order and in forms of the compiler's choice.
    arrays = (
        (kind, *array) for shape, kind in found for array in re.findall(r"(\w+)\[([\d,]*)\]", shape)
    )
    return sorted(
        f"{kind} {dtype}[{math.prod(map(int, filter(None, sizes.split(','))))}]"
        for kind, dtype, sizes in arrays
    )
