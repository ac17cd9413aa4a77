"""Prints where the wall time of a run went: steps that were kept, and the rest by cause.

    python -m pipelines.goodput runs/quickstart
    python -m pipelines.goodput runs/quickstart --json

The parts add up to the time since the run's first start. The run may be training meanwhile.
"""

import json

from m3ae_tpu.command_line import one_place, run_program
from m3ae_tpu.files import Place
from m3ae_tpu.option_flags import define_flag

_WORKDIR = define_flag(
    "workdir",
    Place,
    None,
    "Folder of the run, also gs://BUCKET/FOLDER; may be given without the flag's name.",
)
_JSON = define_flag("json", bool, False, "Print JSON for programs: the seconds of each part.")


def main(argv: list[str]) -> None:
    """Prints the parts of the wall time of the workdir named on the command line."""
    workdir = one_place(argv, _WORKDIR.value, "python -m pipelines.goodput WORKDIR")
    from m3ae_tpu.run.claim import files_of
    from m3ae_tpu.run.goodput import PARTS, duration, figures

    with files_of(workdir) as folder:
        found = figures(folder)
    if _JSON.value:
        print(json.dumps(found, indent=2))
        return
    wall = found["wall_seconds"]
    for part, name in PARTS.items():
        seconds = found[f"{part}_seconds"]
        print(f"{name:<22}{duration(seconds):>10}{seconds / (wall or 1):>8.1%}")
    starts = f"{found['starts']} start{'s' if found['starts'] > 1 else ''}"
    print(f"{'wall time':<22}{duration(wall):>10}  {starts}")


def run() -> None:
    """Entry point of the installed command `m3ae-goodput`."""
    run_program(main)


if __name__ == "__main__":
    run()
