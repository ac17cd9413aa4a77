"""Guards the wheel: complete, alone under one top-level name, and running far from the checkout."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest
from repository import ROOT, tracked_files

from m3ae_tpu.data.shards import open_shards

FORWARD = """
import jax, numpy as np
from m3ae_tpu.configs import debug
from m3ae_tpu.model.inputs import Inputs
from m3ae_tpu.model.m3ae import M3AE

model = M3AE(debug.CONFIG.model, key=jax.random.key(0))
inputs = Inputs(
    images=np.zeros((2, 32, 32, 3), np.float32),
    text_ids=np.ones((2, 24), np.int32),
    is_valid=np.ones((2, 24), bool),
)
print("features", jax.jit(lambda model: model.encode(inputs).cls)(model).shape)
"""


def run(*command, cwd):
    """Runs a command as a user far from the checkout would; returns what it printed."""
    env = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "VIRTUAL_ENV")
    }
    arguments = [str(argument) for argument in command]
    done = subprocess.run(arguments, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    # Built from a copy: setuptools leaves `build/` and `*.egg-info` beside what it packs.
    copy = tmp_path_factory.mktemp("copy") / "repository"
    tracked = tracked_files()
    if tracked is None:
        pytest.skip("the wheel is built of what git tracks, and this is not a git checkout")
    for path in tracked:
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / path, copy / path, follow_symlinks=False)
    build = "from setuptools import build_meta; build_meta.build_wheel('dist')"
    run(sys.executable, "-W", "ignore", "-c", build, cwd=copy)
    (path,) = (copy / "dist").glob("*.whl")
    print(f"{path.name}: {path.stat().st_size / 1e6:.1f} MB")
    return path


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
    """The Python of an environment that holds the wheel and what it asks for."""
    return install(
        tmp_path_factory.mktemp("environment"), wheel, "--constraint", ROOT / "constraints.txt"
    )


def install(folder, *requirements):
    """Returns the Python of a new environment with the requirements."""
    python = folder / "venv" / "bin" / "python"
    if shutil.which("uv"):
        run("uv", "venv", "--python", sys.executable, folder / "venv", cwd=ROOT)
        run("uv", "pip", "install", "--python", python, *requirements, cwd=ROOT)
    else:
        run(sys.executable, "-m", "venv", folder / "venv", cwd=ROOT)
        run(python, "-m", "pip", "install", "--quiet", "--no-compile", *requirements, cwd=ROOT)
    return python


@pytest.mark.slow
def test_wheel_holds_one_top_level_name(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"m3ae_tpu"}


@pytest.mark.slow
def test_wheel_holds_every_module_the_starter_set_and_model_but_not_the_source(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in tracked_files("kernels/*.py", "configs/*.py", "pipelines/*.py") or []:
        assert f"m3ae_tpu/{path}" in names
    for path in tracked_files("m3ae_tpu/*.py") or []:
        assert str(path) in names
    starter = [name for name in names if name.startswith("m3ae_tpu/data/starter/")]
    assert any(name.endswith(".array_record") for name in starter)
    assert "m3ae_tpu/data/starter/tokenizer.model" in starter
    for name in ("config.json", "evaluation.json", "manifest.json", "model.safetensors"):
        assert f"m3ae_tpu/pretrained/starter/{name}" in names
    assert not [name for name in starter if "/source/" in name]
    assert "m3ae_tpu/py.typed" in names
    assert [name for name in names if name.endswith("licenses/LICENSE")]
    assert [name for name in names if name.endswith("licenses/NOTICE")]


@pytest.mark.slow
def test_installed_wheel_runs_a_forward_pass_far_from_the_checkout(environment, tmp_path):
    find = "from importlib.util import find_spec as f; print([n for n in %r if f(n)])"
    names = ("m3ae_tpu", "kernels", "pipelines", "configs", "tests")
    assert run(environment, "-c", find % (names,), cwd=tmp_path).strip() == "['m3ae_tpu']"
    assert run(environment, "-c", FORWARD, cwd=tmp_path).strip() == "features (2, 32)"


@pytest.mark.slow
def test_installed_wheel_trains_by_its_command(environment, tmp_path):
    command = environment.parent / "m3ae-pretrain"
    run(command, "--config=debug", "--num_steps=2", "--workdir=run", cwd=tmp_path)
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count('"step"') == 2


@pytest.mark.long
def test_beam_extra_resolves_and_prepares_the_same_bytes(wheel, environment, tmp_path):
    records = open_shards("starter/heldout-*")
    for number in range(3):
        with tarfile.open(tmp_path / f"{number}.tar", "w") as archive:
            for index in range(number, 60, 3):
                caption = records[index].captions[0].encode()
                for ending, content in {
                    "webp": records[index].image[: 9999 if index else 400],
                    "txt": caption,
                }.items():
                    member = tarfile.TarInfo(f"{index:05d}.{ending}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))
    beam = install(tmp_path, f"m3ae-tpu[beam] @ {wheel.as_uri()}")
    inputs = ",".join(f"{number}.tar" for number in range(3))
    for python, output, options in (
        (environment, "local", ["--num_workers=2"]),
        (beam, "direct", ["--runner=DirectRunner"]),
    ):
        command = python.parent / "m3ae-prepare-data"
        run(
            command,
            f"--input={inputs}",
            f"--output={output}",
            "--num_shards=2",
            *options,
            cwd=tmp_path,
        )
    names = sorted(path.name for path in (tmp_path / "local").iterdir())
    assert len(names) == 4
    assert names == sorted(path.name for path in (tmp_path / "direct").iterdir())
    for name in names:
        assert (tmp_path / "local" / name).read_bytes() == (
            tmp_path / "direct" / name
        ).read_bytes(), name
    manifest = json.loads((tmp_path / "direct" / "manifest.json").read_text())
    assert (manifest["given"], manifest["kept"], manifest["dropped"]) == (
        60,
        59,
        {"damaged image": 1},
    )
