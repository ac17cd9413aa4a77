"""Guards the program as a user runs it: kills, restarts, extensions, and messages of mistakes."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import fake_gcs
import numpy as np
import pytest

from m3ae_tpu.data.records import Record
from m3ae_tpu.data.shards import write_shards
from m3ae_tpu.files import is_remote
from m3ae_tpu.run.claim import files_of
from m3ae_tpu.run.inspection import inspect

ROOT = pathlib.Path(__file__).parent.parent
FLAGS = ["--num_steps=24", "--checkpoint.every_steps=4"]
MIXED = """
import dataclasses
from m3ae_tpu.config import SourceConfig
from m3ae_tpu.configs import debug

SOURCES = (
    SourceConfig(text_length=24, weight=2.0),
    SourceConfig(kind="image", shards="starter/images-*"),
    SourceConfig(kind="text", shards="starter/texts-*", text_length=32),
)
DATA = dataclasses.replace(debug.CONFIG.data, sources=SOURCES)
CONFIG = dataclasses.replace(debug.CONFIG, data=DATA)
"""


def environment():
    """Returns the environment of a program; buckets are found by it."""
    return {**os.environ, "JAX_PLATFORMS": "cpu"}


# Sends a signal to the run itself as soon as the metrics of a step are written.
SIGNALLED = """
import os, runpy, sys
from m3ae_tpu.run.metrics import MetricsWriter

write = MetricsWriter.write

def write_and_signal(self, step, *values):
    write(self, step, *values)
    if step == {step}:
        os.kill(os.getpid(), {number})

MetricsWriter.write = write_and_signal
runpy.run_module("pipelines.pretrain", run_name="__main__", alter_sys=True)
"""


def pretrain(workdir, *flags, config="debug", signalled=None):
    """Runs the program; returns its exit code and all that it printed.

    Args:
        signalled: A step and the signal that the run gets after it.
    """
    program = ["-m", "pipelines.pretrain"]
    if signalled is not None:
        step, number = signalled
        program = ["-c", SIGNALLED.format(step=step, number=int(number))]
    done = subprocess.run(
        [sys.executable, *program, f"--config={config}", f"--workdir={workdir}", *flags],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def read(workdir, name):
    """Returns the text of a small file of a workdir."""
    with files_of(workdir) as folder:
        return (folder / name).read_text()


def metrics(workdir):
    """Returns all lines of metrics, without those that measure time."""
    lines = read(workdir, "metrics.jsonl").splitlines()
    return [
        {k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in lines
    ]


def digests(workdir):
    """Returns the digests of model, optimizer and data state of each kept step."""
    with files_of(workdir) as folder:
        return {
            step["step"]: (step["model_sha256"], step["optimizer_sha256"], step["data_sha256"])
            for step in inspect(folder)
        }


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A config of pairs, images and texts."""
    path = tmp_path_factory.mktemp("mixed") / "mixed.py"
    path.write_text(MIXED)
    return path


@pytest.fixture(scope="module")
def uninterrupted(mixed, tmp_path_factory):
    """A run that nothing interrupts."""
    workdir = tmp_path_factory.mktemp("uninterrupted") / "run"
    code, output = pretrain(workdir, *FLAGS, "--log_record_ids", config=mixed)
    assert code == 0, output
    return workdir


@pytest.fixture(params=["disk", pytest.param("bucket", marks=pytest.mark.long)])
def workdir(request, tmp_path):
    """A workdir that is yet to be made, on a disk or in a bucket."""
    if request.param == "disk":
        return tmp_path / "run"
    fake_gcs.shared_server().restart("bucket")
    return "gs://bucket/run"


@pytest.mark.parametrize(
    "workdir", ["disk", pytest.param("bucket", marks=pytest.mark.slow)], indirect=True
)
def test_a_killed_run_resumes_bit_for_bit_also_with_other_workers(uninterrupted, mixed, workdir):
    flags = [*FLAGS, "--log_record_ids"]
    # The save of step 8 waits for that of step 4, so one checkpoint is complete.
    code, _ = pretrain(
        workdir, *flags, "--data.num_workers=2", config=mixed, signalled=(10, signal.SIGKILL)
    )
    assert code == -signal.SIGKILL
    code, output = pretrain(workdir, *flags, "--data.num_workers=0", config=mixed)
    assert code == 0, output
    assert "data.num_workers = 0 now, was 2" in output
    assert "going on after step" in output
    assert metrics(workdir) == metrics(uninterrupted)
    assert digests(workdir)[24] == digests(uninterrupted)[24]
    ids = [read(place, "record_ids.jsonl") for place in (workdir, uninterrupted)]
    assert len(ids[1].splitlines()) == 24
    assert ids[0] == ids[1]


def test_sigterm_saves_and_exits_cleanly_and_the_run_can_be_extended(uninterrupted, mixed, workdir):
    code, output = pretrain(workdir, *FLAGS, config=mixed, signalled=(5, signal.SIGTERM))
    assert code == 0, output
    assert 5 <= max(digests(workdir)) < 24
    code, output = pretrain(workdir, *FLAGS, config=mixed)
    assert code == 0, output
    assert metrics(workdir) == metrics(uninterrupted)
    code, output = pretrain(workdir, *FLAGS, "--num_steps=30", config=mixed)
    assert code == 0
    assert "num_steps = 30 now, was 24" in output
    # The rate of the longer schedule, not the 0 at which the shorter one ended.
    assert metrics(workdir)[-1]["step"] == 30
    assert metrics(workdir)[-3]["train/learning_rate"] > 1e-6


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_last_good_checkpoint(workdir):
    flags = [
        "--optimizer.base_learning_rate=1e30",
        "--checkpoint.every_steps=1",
        "--optimizer.warmup_fraction=0.1",
    ]
    code, output = pretrain(workdir, *FLAGS, *flags)
    assert code != 0
    assert "Traceback" not in output
    assert "is not finite; the last good checkpoint is" in output
    (step,) = re.findall(r"To see the step: --replay_step=(\d+)", output)
    ids = json.loads(read(workdir, f"nonfinite-{step}.json"))
    assert len(ids["paired"]) == 16
    assert f"Its batch has the records {ids['paired'][0]}, " in output
    code, output = pretrain(workdir, *FLAGS, *flags, f"--replay_step={step}")
    assert code == 0, output
    with files_of(workdir) as folder:
        replayed = dict(np.load(folder / f"replay-{step}.npz"))
    assert not all(np.isfinite(replayed[f"step/{name}"]) for name in ("loss", "parameter_norm"))
    assert replayed["paired/ids"].tolist() == ids["paired"]
    assert replayed["paired/rows/loss"].shape == (16,)
    assert replayed["paired/masks/image/hidden"].shape == (16, 12)


def test_other_shards_of_the_same_names_and_counts_are_refused_unless_allowed(workdir, tmp_path):
    def run(num_steps, *flags):
        source = ["--data.sources.0.kind=text", f"--data.sources.0.shards={tmp_path}/texts-*"]
        return pretrain(workdir, f"--num_steps={num_steps}", *source, *flags)

    for text in ("first", "other"):
        texts = [Record(id=str(index), captions=(f"{text} text {index}",)) for index in range(40)]
        write_shards(tmp_path, "texts", texts)
        if text == "first":
            assert run(1)[0] == 0
    code, output = run(2)
    assert code == 2
    assert "the content of sources.0's texts-00000-of-00001.array_record changed." in output
    assert "Put the old data back, go on with the new ones by --allow_changed_data" in output
    code, output = run(2, "--allow_changed_data")
    assert code == 0, output
    assert "going on with other data: the content of sources.0's texts-00000-of-00001" in output


@pytest.mark.parametrize("caches", ["/proc/none", ""])
def test_compiled_programs_are_kept_where_that_is_possible(caches, tmp_path):
    environment = {**os.environ, "XDG_CACHE_HOME": caches or str(tmp_path)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    # A process of its own: the environment is changed before JAX is used.
    code = """
import os
from m3ae_tpu.run.compiled_programs import keep_compiled_programs
keep_compiled_programs()
print(os.environ.get("JAX_COMPILATION_CACHE_DIR"))
"""
    command = [sys.executable, "-c", code]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    *remarks, kept = ended.stdout.splitlines()
    assert kept == ("None" if caches else f"{tmp_path}/m3ae-tpu/jax")
    assert len(remarks) == (1 if caches else 0)
    assert all(line.startswith("compiled programs are not kept") for line in remarks)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--data.sources.0.shards=nowhere/train-*"], "nowhere/train-"),
        (["--data.sources.0.shards=README.md"], "README.md"),
        (["--data.image_size=30"], "--data.image_size=32"),
        (["--masking.text_mask_ratio=1.2"], "text_mask_ratio = 1.2"),
        (["--data.tokenizer=README.md"], "README.md"),
        (["--data.tokenizer=nowhere.model"], "nowhere.model"),
    ],
)
def test_mistakes_end_in_a_message_that_names_them(mixed, flags, message, workdir):
    code, output = pretrain(workdir, *FLAGS, *flags, config=mixed)
    assert_refused(code, output, message)


def assert_refused(code, output, message):
    """A mistake ends the program with a short message."""
    assert code == 2, output
    assert message in output
    assert "Traceback" not in output
    assert len(output.strip().splitlines()) < 5, output


def test_a_workdir_of_another_run_is_refused_and_a_damaged_checkpoint_named(workdir):
    code, output = pretrain(workdir, "--num_steps=4", "--checkpoint.every_steps=2")
    assert code == 0, output
    code, output = pretrain(workdir, "--num_steps=4", "--seed=1")
    assert_refused(code, output, "holds another run: seed = 1 now, was 0")
    code, output = pretrain(workdir, "--num_steps=2")
    assert_refused(code, output, "num_steps = 2 is less than the 4 steps")
    remove_stored(workdir, "checkpoints/4/model/_METADATA")
    code, output = pretrain(workdir, "--num_steps=4", "--checkpoint.every_steps=2")
    assert code == 0, output
    name = f"{workdir}/checkpoints/4/model/_METADATA"
    assert f"checkpoint 4 is damaged and skipped: {name} is missing" in output
    assert "going on after step 2" in output
    for step in (2, 4):
        remove_stored(workdir, f"checkpoints/{step}/digests.json")
    code, output = pretrain(workdir, "--num_steps=4")
    assert_refused(code, output, "holds no undamaged checkpoint")


def remove_stored(workdir, name):
    """Removes a stored file."""
    if is_remote(workdir):
        del fake_gcs.shared_server().buckets["bucket"][f"run/{name}"]
    else:
        (workdir / name).unlink()


@pytest.mark.long
def test_a_second_start_is_refused_while_one_runs_and_let_in_after_its_kill(workdir):
    command = [sys.executable, "-m", "pipelines.pretrain", "--config=debug"]
    first = subprocess.Popen(
        [*command, f"--workdir={workdir}", "--num_steps=100000"],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert first.stdout is not None
    while "step 12/" not in first.stdout.readline():
        assert first.poll() is None
    code, output = pretrain(workdir, "--num_steps=20")
    assert_refused(code, output, "in use by")
    first.kill()
    first.communicate()
    last = max(digests(workdir))
    code, output = pretrain(workdir, f"--num_steps={last + 2}")
    assert code == 0, output
    assert f"going on after step {last}" in output
