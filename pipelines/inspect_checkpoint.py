"""Prints the contents of a run's checkpoints, with digests to compare runs by.

    python -m pipelines.inspect_checkpoint runs/quickstart
    python -m pipelines.inspect_checkpoint runs/quickstart --json

Equal digests mean equal runs: they cover names, dtypes, shapes and bits of all arrays, however they
are spread over devices and files. Needs neither the config nor an accelerator. The run may be
training meanwhile.
"""

import json
import os
from typing import Any

from m3ae_tpu.command_line import one_place, run_program
from m3ae_tpu.files import Place
from m3ae_tpu.option_flags import define_flag

_WORKDIR = define_flag(
    "workdir",
    Place,
    None,
    "Folder of the run, also gs://BUCKET/FOLDER; may be given without the flag's name.",
)
_JSON = define_flag(
    "json", bool, False, "Print JSON for programs: a list with one object per kept step."
)


def _as_text(description: dict[str, Any]) -> str:
    if description["damage"]:
        return f"step {description['step']}\n  damaged     {description['damage']}"
    versions = description["versions"] or {}
    values = {
        "parameters": f"{description['parameters']:,} ({description['parameter_bytes']:,} bytes)",
        "model": description["model_sha256"],
        "optimizer": description["optimizer_sha256"],
        "data": description["data_sha256"],
        "tokenizer": description["tokenizer_sha256"] or "none",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "config": json.dumps(description["config"]),
    }
    return "\n".join(
        [
            f"step {description['step']}",
            *(f"  {name:<11} {value}" for name, value in values.items()),
        ]
    )


def main(argv: list[str]) -> None:
    """Prints the checkpoints of the workdir named on the command line."""
    workdir = one_place(argv, _WORKDIR.value, "python -m pipelines.inspect_checkpoint WORKDIR")
    # An accelerator may be held by a run that is training.
    os.environ["JAX_PLATFORMS"] = "cpu"
    from m3ae_tpu.run.claim import files_of
    from m3ae_tpu.run.inspection import inspect

    with files_of(workdir) as folder:
        descriptions = inspect(folder)
    if _JSON.value:
        print(json.dumps(descriptions, indent=2))
    else:
        print("\n\n".join(map(_as_text, descriptions)))


def run() -> None:
    """Entry point of the installed command `m3ae-inspect-checkpoint`."""
    run_program(main)


if __name__ == "__main__":
    run()
