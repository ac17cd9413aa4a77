"""The benchmark of a GPU: commands in order, each in a process of its own.

A process that ends badly, as a new kernel may make it, leaves the others' figures alone.
"""

import importlib.util
import json
import os
import pathlib
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import rich

from m3ae_tpu.parallel.forms import forms_of

_IMAGES = ("--model.vocab_size=0", "--data.sources.0.kind=image")
_DEVICE = "import jax; print(jax.default_backend(), jax.devices()[0].device_kind)"


class Stage(NamedTuple):
    """One measurement."""

    name: str
    """Name of its file of figures."""
    command: list[str]
    """It writes its figures to the file that `--json` names, which is added to it."""
    timeout: float = 600.0
    """Seconds after which it is ended."""


def plan() -> list[Stage]:
    """Returns the measurements; those that matter most come first."""
    has_torch = all(importlib.util.find_spec(name) for name in ("torch", "timm"))
    torch = ["--against=torch" if has_torch else "--against="]
    step = ["m3ae_tpu.pipelines.benchmark_step", "--rounds=4"]
    kernels = ["m3ae_tpu.pipelines.benchmark_kernels", "--batch=256", "--rounds=8"]
    own = forms_of("gpu")._asdict().items()
    forms = [name for name, is_taken in own if is_taken is True]
    stages = {
        "base_images": [*step, *torch, "--trace", "--config=m3ae_base", "--rows=256", *_IMAGES],
        "large_images": [*step, *torch, "--trace", "--config=m3ae_large", "--rows=128", *_IMAGES],
        "base_pairs": [*step, "--against=", "--trace", "--config=m3ae_base", "--rows=256"],
        "attention_images": [*kernels, "--against=xla,cudnn,hopper", "--shapes=decoder_image"],
        "attention_pairs": [
            *kernels,
            "--masked",
            "--against=xla,cudnn,hopper",
            "--shapes=encoder_base,decoder",
        ],
        "forms": [
            *step,
            "--against=",
            f"--without={','.join(forms)}",
            "--config=m3ae_base",
            "--rows=256",
            *_IMAGES,
        ],
    }
    return [Stage(name, [sys.executable, "-m", *words]) for name, words in stages.items()]


def gpu_here() -> str | None:
    """Returns the name of the GPU that JAX finds, in a process of its own; None: there is none."""
    found = subprocess.run(
        [sys.executable, "-c", _DEVICE],
        capture_output=True,
        text=True,
        check=False,
        env=_environment(),
    )
    return found.stdout.partition(" ")[2].strip() if found.stdout.startswith("gpu ") else None


def run(stages: Sequence[Stage], folder: pathlib.Path) -> dict[str, Any]:
    """Runs the stages in order; what they print is shown.

    Args:
        stages: Each with another name.
        folder: Gets a JSON file of each stage's figures.

    Returns:
        The figures by the stage's name, or the reason why there are none: `{"failed": ...}`.
    """
    results: dict[str, Any] = {}
    for number, stage in enumerate(stages, 1):
        rich.print(f"[bold]{number} of {len(stages)}[/bold]: {shown(stage)}")
        path = folder / f"{stage.name}.json"
        try:
            code = subprocess.run(
                [*stage.command, f"--json={path}"],
                check=False,
                env=_environment(),
                timeout=stage.timeout,
            ).returncode
            reason = f"it ended with code {code}"
        except subprocess.TimeoutExpired:
            reason = f"it took over {stage.timeout:.0f} s"
        has_figures = path.exists()
        results[stage.name] = json.loads(path.read_bytes()) if has_figures else {"failed": reason}
    return results


def _environment() -> dict[str, str]:
    """Returns the environment of a measurement: it sees one GPU."""
    return {"CUDA_VISIBLE_DEVICES": "0"} | os.environ


def shown(stage: Stage) -> str:
    """Returns a stage's command as people type it."""
    return shlex.join(["python", *stage.command[1:]]).replace("m3ae_tpu.pipelines", "pipelines")
