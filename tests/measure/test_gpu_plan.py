"""Guards the benchmark of a GPU: its commands exist, a failure leaves the rest alone, and the page
holds the figures.
"""

import dataclasses
import json
import re
import subprocess
import sys

from jax.profiler import ProfileData
from repository import ROOT

from m3ae_tpu.configs import debug
from m3ae_tpu.kernels.attention.shapes import ATTENTION
from m3ae_tpu.kernels.chips import CHIPS
from m3ae_tpu.measure import gpu_plan, step_benchmark
from m3ae_tpu.measure.gpu_page import page
from m3ae_tpu.measure.gpu_plan import Stage
from m3ae_tpu.measure.gpu_step_benchmark import kinds_of
from m3ae_tpu.measure.gpu_step_cost import ComponentCost, GpuStepCost
from m3ae_tpu.measure.gpu_trace import BusyTime, busy_time
from m3ae_tpu.measure.step_cost import COMPONENTS
from m3ae_tpu.parallel.forms import Forms

WRITES = "import pathlib, sys; pathlib.Path(sys.argv[1].partition('=')[2]).write_text('[1]')"


def python(name, code, **fields):
    return Stage(name, [sys.executable, "-c", code], **fields)


def test_what_fails_or_takes_too_long_leaves_the_figures_of_the_others(tmp_path):
    stages = [
        python("broken", "raise SystemExit(3)"),
        python("endless", "import time; time.sleep(600)", timeout=1.0),
        python("whole", WRITES, timeout=300.0),
    ]
    assert gpu_plan.run(stages, tmp_path) == {
        "broken": {"failed": "it ended with code 3"},
        "endless": {"failed": "it took over 1 s"},
        "whole": [1],
    }


def test_every_command_of_the_plan_is_a_program_with_its_flags():
    for stage in gpu_plan.plan():
        _, _, module, *words = stage.command
        program = ROOT / "pipelines" / f"{module.rpartition('.')[2]}.py"
        given = dict(word.removeprefix("--").split("=") for word in words if "=" in word)
        names = {word.removeprefix("--").partition("=")[0] for word in words}
        known = set(re.findall(r'define_flag\(\s*"(\w+)"', program.read_text()))
        assert {name for name in names if "." not in name} <= known
        assert gpu_plan.shown(stage).startswith(f"python -m pipelines.{program.stem} ")
        assert set(given.get("shapes", "decoder").split(",")) <= set(ATTENTION)
        forms = given.get("without", "folds_norms").split(",")
        assert Forms().without(*forms) == Forms()


def test_the_page_has_every_step_beside_its_model_and_the_kinds_of_kernels(capsys):
    # As a GPU gives them, of tiny steps that were timed here.
    figures = step_benchmark.time_steps(debug.CONFIG, ["ours", "xla"], rounds=2, has_trace=True)
    assert "modelled" in capsys.readouterr().out
    assert figures["ours"]["modelled"] is figures["ours"]["busy"] is None  # No GPU is here.
    part = ComponentCost(product_ms=20.0, cudnn_ms=10.0, other_ms=5.0)
    cost = GpuStepCost(dict.fromkeys(COMPONENTS, ComponentCost()) | {"rest": part}, 1, 2, 0)
    busy = BusyTime(product_ms=19.0, attention_ms=12.0, other_ms=10.0)
    figures["ours"] |= {
        "modelled": dataclasses.asdict(cost) | {"ms": cost.whole.ms},
        "busy": dataclasses.asdict(busy),
        "kinds": [kind._asdict() for kind in kinds_of(cost, busy)],
    }
    figures |= {"torch": {"failed": "does not fit. Out of memory"}}
    figures["device"] = CHIPS["h100"].device_kind
    lines = [
        {"shape": "decoder", "implementation": "ours", "backward": False, "us": 2.9},
        {"shape": "decoder", "implementation": "ours", "backward": True, "us": 9.31},
        {"shape": "decoder", "implementation": "hopper", "backward": False, "reason": "no Hopper"},
    ]
    results = {"steps": json.loads(json.dumps(figures)), "attention": lines}
    results["broken"] = {"failed": "it took over 400 s"}
    stages = [python(name, WRITES) for name in results]
    text = page(stages, results, "a card")
    assert f"| ours | {figures['ours']['seconds'] * 1e3:.1f} ±" in text
    assert " | 35.0 | " in text
    assert "| torch | does not fit. Out of memory |" in text
    assert "| products | 20.0 | 19.0 | 80% |" in text
    assert "| attention | 10.0 | 12.0 |  |" in text
    assert "| other kernels | 5.0 | 10.0 | 34% |" in text
    assert "| decoder | 2.90, 9.31 | no Hopper |" in text
    assert "No figures: it took over 400 s." in text


KERNELS = {
    "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n": 4,
    "cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma": 3,
    "loop_add_fusion_3": 2,
    "MemcpyD2D": 1,
}
"""Milliseconds in a trace, by name."""


def profile(plane, line):
    """Returns a profile of the kernels on one line."""
    events = names = ""
    for number, (name, ms) in enumerate(KERNELS.items(), 1):
        events += f"events {{ metadata_id: {number} duration_ps: {ms * 10**9} }}\n"
        names += f'event_metadata {{ key: {number} value {{ id: {number} name: "{name}" }} }}\n'
    lines = f'lines {{ id: 1 name: "{line}" {events} }}'
    return ProfileData.from_text_proto(f'planes {{ id: 1 name: "{plane}" {lines} {names} }}')


def test_kernels_of_a_trace_are_told_apart_by_name():
    found = busy_time(profile("/device:GPU:0", "Stream #13(Compute)"), num_steps=2)
    assert found == BusyTime(product_ms=2.0, attention_ms=1.5, other_ms=1.5)
    # Other lines of a GPU show the same time again, by operation.
    assert busy_time(profile("/device:GPU:0", "XLA Ops"), num_steps=2) == BusyTime()
    assert busy_time(profile("/host:CPU", "Stream #1"), num_steps=2) is None


def test_without_a_gpu_the_program_names_what_can_be_done(tmp_path):
    def program(*flags):
        command = [sys.executable, "-m", "pipelines.benchmark_gpu", *flags]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    refused = program(f"--output={tmp_path / 'figures'}")
    assert refused.returncode == 2
    assert "JAX finds no NVIDIA GPU here" in refused.stderr
    assert not (tmp_path / "figures").exists()
    refused = program(f"--output={tmp_path}")
    assert refused.returncode == 2
    assert "exists already. Name another one" in refused.stderr
