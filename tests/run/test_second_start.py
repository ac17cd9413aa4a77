"""Guards the cache of compiled programs: a second start compiles nothing, also one that resumes."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
CACHE = ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")


def compiled(caches, program, *flags):
    """Runs a program whose caches lie in a folder; returns the names of what it compiled."""
    environment = {name: value for name, value in os.environ.items() if name not in CACHE}
    environment |= {
        "JAX_PLATFORMS": "cpu",
        "XDG_CACHE_HOME": str(caches),
        "JAX_DEBUG_LOG_MODULES": "jax._src.compiler",
    }
    command = [sys.executable, "-m", f"pipelines.{program}", *flags]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    return re.findall(r"CACHE MISS for '(\w+)'", output)


@pytest.mark.parametrize(
    ("program", "config"),
    [
        pytest.param("pretrain", "debug", marks=pytest.mark.slow),
        pytest.param("pretrain", "quickstart", marks=pytest.mark.long),
        pytest.param("finetune", "finetune_starter", marks=pytest.mark.long),
    ],
)
def test_a_second_start_compiles_nothing(program, config, tmp_path):
    caches, first, second = (tmp_path / name for name in ("caches", "first", "second"))
    flags = [f"--config={config}", "--num_steps=3", "--checkpoint.every_steps=2"]
    assert "jit_train_step" in compiled(caches, program, *flags, f"--workdir={first}")
    assert compiled(caches, program, *flags, f"--workdir={second}") == []
    # As if it had been killed in its last step.
    shutil.rmtree(second / "checkpoints" / "3")
    assert compiled(caches, program, *flags, f"--workdir={second}") == []
