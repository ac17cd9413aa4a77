"""Measures what a run has learned, on held-out examples, and writes WORKDIR/evaluation.json.

    python -m pipelines.evaluate runs/quickstart

Compares probes of frozen features with those of an untrained encoder and of raw input, and scores
the pre-training task itself. Takes the newest checkpoint; the run may be training meanwhile. The
modules that `m3ae_tpu/evaluation/evaluate.py` lists explain every figure.
"""

import pathlib

from absl import flags

from m3ae_tpu.command_line import run_program
from m3ae_tpu.errors import require

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; may also be given without the flag's name."
)
_TRAIN = flags.DEFINE_string(
    "train_shards", "starter/train-*", "Labelled shards that probes learn from."
)
_TEST = flags.DEFINE_string(
    "test_shards", "starter/heldout-*", "Labelled shards that everything is scored on."
)


def main(argv: list[str]) -> None:
    """Evaluates the run that the command line names."""
    named = [*([_WORKDIR.value] if _WORKDIR.value else []), *argv[1:]]
    require(len(named) == 1, "Name one workdir: python -m pipelines.evaluate WORKDIR.")
    from m3ae_tpu.evaluation.evaluate import evaluate_workdir

    evaluate_workdir(pathlib.Path(named[0]), _TRAIN.value, _TEST.value)


def run() -> None:
    """Entry point of the installed command `m3ae-evaluate`."""
    run_program(main)


if __name__ == "__main__":
    run()
