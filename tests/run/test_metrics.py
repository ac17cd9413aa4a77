"""Guards that metrics are read bit for bit as written, and that a resumed run repeats no line."""

import json
import math
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from m3ae_tpu.errors import UserError
from m3ae_tpu.run.metrics import MetricsWriter, read_metrics


def write(workdir, steps, *, resume_step=0, value=0.1):
    writer = MetricsWriter(workdir, resume_step=resume_step)
    for step in steps:
        writer.write(step, {"train/loss": value})
    writer.close()


def test_numbers_are_read_with_the_same_bits(tmp_path):
    written = {
        "a": np.float32(0.1),
        "b": jnp.float32(1 / 3),
        "c": 0.1 + 0.2,
        "d": np.int64(2**40),
        "e": 3,
    }
    writer = MetricsWriter(tmp_path)
    writer.write(7, written)
    (line,) = read_metrics(tmp_path)
    writer.close()
    assert line == {"step": 7, "a": float(np.float32(0.1)), "b": float(jnp.float32(1 / 3))} | {
        name: int(written[name]) if name != "c" else 0.1 + 0.2 for name in "cde"
    }
    assert np.float32(line["a"]) == np.float32(0.1)


def test_line_is_there_as_soon_as_it_is_written(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write(1, {"train/loss": 2.5})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "train/loss": 2.5}\n'
    writer.close()


def test_resumed_run_drops_later_lines_and_an_incomplete_line(tmp_path):
    write(tmp_path, range(1, 7))
    before = (tmp_path / "metrics.jsonl").read_text().splitlines()[:4]
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "train/lo')
    write(tmp_path, [5], resume_step=4, value=0.2)
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3, 4, 5]
    assert (tmp_path / "metrics.jsonl").read_text().splitlines()[:4] == before


def test_run_that_starts_again_from_scratch_drops_all_lines(tmp_path):
    write(tmp_path, range(3))
    write(tmp_path, [0])
    assert [line["step"] for line in read_metrics(tmp_path)] == [0]


def test_numbers_that_json_does_not_have_become_null(tmp_path):
    writer = MetricsWriter(tmp_path)
    writer.write(1, {"nan": math.nan, "inf": np.float32("inf")})
    writer.close()
    line = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert line == {"step": 1, "nan": None, "inf": None}


def test_line_that_does_not_hold_metrics_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnonsense\n{"step": 2}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2 = 'nonsense'"):
        read_metrics(tmp_path)


def test_folder_without_metrics_has_no_lines(tmp_path):
    assert read_metrics(tmp_path) == []


def test_tensorboard_gets_the_metrics_too(tmp_path):
    write(tmp_path, [1, 2])
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert events.read_bytes().count(b"train/loss") == 2


def test_missing_wandb_names_the_extra_and_touches_no_metrics(tmp_path, monkeypatch):
    write(tmp_path, [1])
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"wandb_project = mine needs .*m3ae-tpu\[wandb\]"):
        MetricsWriter(tmp_path, wandb_project="mine")
    assert len(read_metrics(tmp_path)) == 1


def test_files_that_cannot_grow_end_a_run_and_do_not_hold_it_up(tmp_path):
    program = f"""
import pathlib, resource
from m3ae_tpu.run.metrics import MetricsWriter
writer = MetricsWriter(pathlib.Path({str(tmp_path)!r}))
resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
for step in range(1, 100_000):
    writer.write(step, {{"train/loss": 0.5, "train/grad_norm": 0.1, "train/parameter_norm": 0.2}})
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "OSError: [Errno 27] File too large" in done.stderr


def test_files_of_a_run_that_restarts_at_once_are_all_kept(tmp_path):
    write(tmp_path, [1])
    write(tmp_path, [2], resume_step=1)
    events = [path.read_bytes() for path in sorted((tmp_path / "tensorboard").iterdir())]
    assert [event.count(b"train/loss") for event in events] == [1, 1]
