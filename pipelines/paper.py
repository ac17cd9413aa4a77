"""Runs an experiment of the paper again: on the starter set in minutes, or as commands for a pod.

    python -m pipelines.paper --experiment=text_mask
    python -m pipelines.paper --experiment=text_mask --scale=full
    python -m pipelines.paper --experiment=ood --model=runs/quickstart

`starter` trains every variant with several seeds and writes report.html, table.md, plot.svg and
results.json: means and deviations beside the paper's values, and for each finding of the paper if
the small scale shows it. The number of steps follows from --minutes. The same command goes on after
an interruption. `full` prints the commands of the same variants at the paper's size, and what they
need. With --model, `ood`, `attention`, `embedding` and `reconstruct` measure your own models
instead, on shards of yours if you name some. The page docs/paper.md has the whole list.
"""

import pathlib
import shlex
import sys
from typing import Literal

from m3ae_tpu.command_line import run_program
from m3ae_tpu.errors import require
from m3ae_tpu.option_flags import define_flag

type Name = Literal[
    "epochs",
    "size",
    "baselines",
    "paired_share",
    "text_mask",
    "ood",
    "attention",
    "embedding",
    "reconstruct",
]

_EXPERIMENT = define_flag("experiment", Name, None, "Experiment of the paper.", required=True)
_SCALE = define_flag(
    "scale",
    Literal["starter", "full"],
    "starter",
    "Short runs here, or the commands of the paper's size.",
)
_OUTPUT = define_flag(
    "output",
    pathlib.Path,
    None,
    "Folder of the results, made if missing. Empty: runs/paper/EXPERIMENT.",
)
_SEEDS = define_flag("seeds", int, 3, "Runs of every variant, with seeds 0, 1, ...", at_least=1)
_MINUTES = define_flag(
    "minutes",
    float,
    20.0,
    "Time for everything on this machine; the first call derives the number of steps from it.",
    at_least=0,
)
_NUM_STEPS = define_flag(
    "num_steps", int, None, "Steps of the longest run. None: as many as fit.", at_least=1
)
_MODEL = define_flag(
    "model", list, [], "Workdirs or model folders to measure, with commas; nothing is trained."
)
_TRAIN = define_flag(
    "train_shards", str, "starter/train-*", "With --model: labelled shards to learn from."
)
_TEST = define_flag(
    "test_shards", str, "starter/heldout-*", "With --model: labelled shards to measure on."
)
_FOREIGN = define_flag(
    "foreign_shards",
    str,
    "",
    "With --model and ood: labelled shards of foreign images. Empty: digits, noise and others.",
)


def main(argv: list[str]) -> None:
    """Runs the experiment that the command line names."""
    require(not argv[1:], f"{' '.join(argv[1:])} belongs to no flag. See --help.")
    from m3ae_tpu.experiments.experiments import EXPERIMENTS

    experiment = EXPERIMENTS[_EXPERIMENT.value]
    of_models = "-of-models" if _MODEL.value else ""
    output = _OUTPUT.value or pathlib.Path(f"runs/paper/{experiment.name}{of_models}")
    require(
        not output.exists() or output.is_dir(), f"--output = {output} is a file. Name a folder."
    )
    if _MODEL.value:
        from m3ae_tpu.experiments.models import measure_models

        measure_models(
            experiment,
            _MODEL.value,
            output,
            train_shards=_TRAIN.value,
            test_shards=_TEST.value,
            foreign_shards=_FOREIGN.value,
            command=_command(),
        )
    elif _SCALE.value == "full":
        from m3ae_tpu.experiments.full import write_full

        write_full(experiment, output)
    else:
        from m3ae_tpu.experiments.starter import run_starter

        run_starter(
            experiment,
            output,
            num_seeds=_SEEDS.value,
            minutes=_MINUTES.value,
            num_steps=_NUM_STEPS.value,
            command=_command(),
        )


def _command() -> str:
    return shlex.join(["python", "-m", "pipelines.paper", *sys.argv[1:]])


def run() -> None:
    """Entry point of the installed command `m3ae-paper`."""
    run_program(main)


if __name__ == "__main__":
    run()
