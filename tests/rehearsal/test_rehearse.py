"""Guards rehearsals by the real compiler: figures, refusals, changes that fit, and exit codes."""

import dataclasses
import importlib.util
import json
import math
import pathlib
import subprocess
import sys

import jax
import pytest

from m3ae_tpu.config import MeshConfig
from m3ae_tpu.configs import debug
from m3ae_tpu.errors import UserError
from m3ae_tpu.measure import tpu_schedule
from m3ae_tpu.rehearsal.compiled import compile_step_for
from m3ae_tpu.rehearsal.compiler import require_compiler
from m3ae_tpu.rehearsal.estimates import figures
from m3ae_tpu.rehearsal.page import write_page
from m3ae_tpu.rehearsal.printed import print_rehearsal, print_sweep, print_target
from m3ae_tpu.rehearsal.rehearse import parse_grant
from m3ae_tpu.rehearsal.topologies import parse_slice
from m3ae_tpu.train.card import size
from m3ae_tpu.train.pretraining import pretraining

ROOT = pathlib.Path(__file__).parents[2]
V5E = parse_slice("v5e:2x2")
CONFIG = dataclasses.replace(
    debug.CONFIG,
    model=dataclasses.replace(debug.CONFIG.model, compute_dtype="bfloat16"),
    mesh=MeshConfig(fsdp=4),
)
KEYS = [
    "fits",
    "peak_bytes_per_chip",
    "capacity_bytes_per_chip",
    "parameter_bytes_per_chip",
    "optimizer_bytes_per_chip",
    "activation_bytes_per_chip",
    "collectives",
    "flops_per_chip",
    "hbm_bytes",
    "compile_seconds",
    "step_seconds",
    "step_ceiling_seconds",
    "examples_per_second",
    "mfu_bound",
    "loader_examples_per_second_per_host",
    "host_cores",
    "chip_hours",
    "days",
]


@pytest.fixture(scope="module")
def compiled():
    """The one step of this file that is compiled to its end."""
    tpu_schedule.prepare(replay=False)
    jax.config.update("jax_disable_most_optimizations", False)
    return compile_step_for(CONFIG, V5E)


@pytest.fixture(scope="module")
def rehearsed(compiled):
    return figures(CONFIG, V5E, compiled) | {"changes": []}


@pytest.mark.tpu_compiler
def test_all_figures_are_there_and_positive(rehearsed):
    assert rehearsed["fits"] is True
    for key in KEYS:
        assert rehearsed[key], key
    assert json.loads(json.dumps(rehearsed)) == rehearsed
    assert rehearsed["mesh"] == {"data": 1, "fsdp": 4, "tensor": 1}
    assert rehearsed["peak_bytes_per_chip"] >= rehearsed["argument_bytes_per_chip"]
    assert rehearsed["mfu"] <= rehearsed["mfu_bound"] <= 1
    assert rehearsed["step_seconds"] < rehearsed["step_ceiling_seconds"]


@pytest.mark.tpu_compiler
def test_parameters_and_moments_are_split_as_the_compiler_was_told(compiled):
    model = jax.eval_shape(pretraining(CONFIG).init_model)
    whole = 4 * size(model)
    assert whole / 4 <= compiled.parameter_bytes <= 1.1 * whole / 4
    assert compiled.optimizer_bytes == pytest.approx(2 * compiled.parameter_bytes, abs=64)
    # The compiler counts tiles, which are larger than the debug model's arrays.
    state = compiled.parameter_bytes + compiled.optimizer_bytes + compiled.batch_bytes
    assert state <= compiled.argument_bytes


@pytest.mark.tpu_compiler
def test_matrices_are_gathered_in_the_loops_and_their_gradients_scattered(compiled):
    inside = [line for line in compiled.collectives if line.is_in_loop]
    gathers = [line for line in inside if line.kind == "all-gather"]
    assert {line.axis for line in gathers} == {"fsdp"}
    # Four matrices of each encoder block in two bytes, once in each direction.
    encoder = [line for line in gathers if "(encoder)" in line.source]
    width, hidden = 32, 4 * 32
    matrices = 2 * width * (3 * width + width + 2 * hidden)
    forward = [line for line in encoder if "transpose(" not in line.source]
    assert sum(line.bytes for line in forward) == matrices
    assert {line.times for line in encoder} == {2}
    assert "reduce-scatter" in {line.kind for line in compiled.collectives}
    assert "?" not in {line.axis for line in compiled.collectives}


@pytest.mark.tpu_compiler
def test_a_report_and_tables_show_the_figures(rehearsed, tmp_path, capsys):
    refused = rehearsed | {"fits": False, "step_seconds": None, "flags": "--mesh.fsdp=1"}
    change = {"flags": "--mesh.fsdp=4", "figures": rehearsed}
    print_rehearsal(rehearsed, "debug")
    print_rehearsal(refused | {"changes": [change]}, "debug")
    print_sweep([rehearsed | {"flags": "--mesh.fsdp=4"}, refused], "debug")
    row = {"config": "debug", "flags": "", "grant_days": 1.0}
    print_target([rehearsed | row | {"steps_in_grant": 1e9, "share_of_run": 3.0}])
    shown = capsys.readouterr().out
    assert "It does not fit" in shown
    assert "--mesh.fsdp=4: peak" in shown
    assert "debug is the last of them" in shown
    page = tmp_path / "report.html"
    write_page([rehearsed, refused], "debug", page)
    text = page.read_text()
    assert "all-gather" in text
    assert "1 of 2 settings fit" in text
    assert "http" not in text


@pytest.mark.tpu_compiler
def test_a_batch_that_does_not_divide_is_refused():
    tpu_schedule.prepare(replay=False)
    with pytest.raises(UserError, match="batch_size = 18 gives 18 rows"):
        compile_step_for(dataclasses.replace(CONFIG, batch_size=18), V5E)


@pytest.mark.tpu_compiler
def test_a_mesh_that_does_not_divide_is_refused():
    tpu_schedule.prepare(replay=False)
    with pytest.raises(UserError, match=r"mesh.fsdp = 3 .*does not divide the 4 devices"):
        compile_step_for(dataclasses.replace(CONFIG, mesh=MeshConfig(fsdp=3)), V5E)


def test_a_grant_is_read_and_another_form_refused():
    grant = parse_grant("v5e:16x16,days=30")
    assert (grant.on.num_chips, grant.days) == (256, 30.0)
    for text in ("v5e:16x16", "v5e:16x16,weeks=2", "30", "v5e:16x16,days=0"):
        with pytest.raises(UserError, match=r"--target = .*days=30"):
            parse_grant(text)


def run(*flags, cwd=ROOT):
    command = [sys.executable, "-m", "pipelines.rehearse", "--config=debug", *flags]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.tpu_compiler
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "--topology names the slices to compile for, or --target a grant"),
        (("--topology=v5e-4",), "--topology = v5e-4 is not a slice of TPUs"),
        (("--topology=v5e:2x2", "--mesh.fsdp=3"), "does not divide the 4 devices"),
        (("--topology=v5e:2x2", "--bath_size=3"), "Did you mean --batch_size?"),
    ],
)
def test_wrong_input_is_one_message(flags, message):
    done = run(*flags)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 4


def test_a_missing_compiler_is_named_with_the_way_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"libtpu, is not installed\. Run `make compile-tpu`"):
        require_compiler()


@pytest.mark.long
@pytest.mark.tpu_compiler
def test_a_step_that_does_not_fit_names_changes_that_do(tmp_path):
    figures_file = tmp_path / "figures.json"
    flags = ["--topology=v5e:2x2", "--batch_size=524288", f"--json={figures_file}"]
    done = run(*flags)
    assert done.returncode == 1, done.stdout + done.stderr
    result = json.loads(figures_file.read_text())
    assert result["fits"] is False
    assert result["peak_bytes_per_chip"] > result["capacity_bytes_per_chip"]
    assert math.isclose(result["capacity_bytes_per_chip"], 15.75 * 2**30, rel_tol=1e-3)
    assert result["changes"]
    for change in result["changes"]:
        assert change["figures"]["fits"]
        assert change["flags"] in " ".join(done.stdout.split())


@pytest.mark.long
@pytest.mark.tpu_compiler
def test_a_grant_and_a_sweep_are_answered(tmp_path):
    figures_file = tmp_path / "figures.json"
    done = run("--target=v5e:2x2,days=1", "--sizes=debug", f"--json={figures_file}")
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = json.loads(figures_file.read_text())
    assert row["share_of_run"] > 1
    done = run("--topology=v4:2x2x1", "--sweep", f"--json={figures_file}")
    assert done.returncode == 0, done.stdout + done.stderr
    (rows,) = (json.loads(figures_file.read_text()),)
    assert len(rows) == 6
    assert all(row["fits"] for row in rows)
