"""Guards that local runs need nothing of Google's: every program works without those packages."""

import os
import subprocess
import sys

import pytest
from repository import ROOT

# Run by Python at its start, in workers too.
WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        del path, target
        beginnings = ("google.cloud", "google.auth", "google.api_core", "google.resumable_media")
        if name.startswith(beginnings) or name in ("gcsfs", "google_crc32c"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
"""


@pytest.fixture
def run(tmp_path):
    """Runs a program without Google's packages, which must end well; returns what it printed."""
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]

    def run(program, *flags):
        done = subprocess.run(
            [sys.executable, "-m", f"pipelines.{program}", *map(str, flags)],
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(paths)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0 or "gs://" in str(flags), done.stdout
        return done.stdout

    return run


@pytest.mark.long
def test_programs_run_locally_without_the_packages_for_buckets(run, tmp_path):
    texts, data = tmp_path / "texts.txt", tmp_path / "data"
    texts.write_text("\n".join(f"A text of some words, number {index}." for index in range(200)))
    run("prepare_data", f"--input={texts}", f"--output={data}", "--kind=text")
    shards = f"--data.sources.0.shards={data}/*.array_record"
    run("inspect_data", data)
    run(
        "train_tokenizer",
        "--shards=starter/texts-*",
        "--vocab_size=400",
        f"--output={tmp_path}/tokenizer.model",
    )
    workdir = tmp_path / "run"
    flags = ["--config=debug", f"--workdir={workdir}", "--num_steps=2", "--data.num_workers=2"]
    run("pretrain", *flags)
    run("pretrain", *flags, "--num_steps=3")
    run(
        "pretrain",
        "--config=debug",
        f"--workdir={tmp_path}/texts_run",
        "--num_steps=1",
        "--data.sources.0.kind=text",
        shards,
    )
    for program in ("inspect_checkpoint", "goodput", "evaluate", "report"):
        run(program, workdir)
    assert (workdir / "report.html").exists()


def test_a_bucket_names_the_package_that_is_missing(run, tmp_path):
    for program, flag in (("pretrain", "--workdir"), ("goodput", "--workdir")):
        printed = run(program, f"{flag}=gs://bucket/run")
        assert "needs the package gcsfs, which is not installed. Install it: pip" in printed
        assert "Traceback" not in printed
