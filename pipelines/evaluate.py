"""Measures what a run has learned, on held-out examples, and writes WORKDIR/evaluation.json.

    python -m pipelines.evaluate runs/quickstart

Compares probes of frozen features with those of an untrained encoder and of raw input, and scores
the pre-training task itself. Takes the newest checkpoint; the run may be training meanwhile. The
modules that `m3ae_tpu/evaluation/evaluate.py` lists explain every figure.
"""

from m3ae_tpu.command_line import one_place, run_program
from m3ae_tpu.files import Place
from m3ae_tpu.option_flags import define_flag

_WORKDIR = define_flag(
    "workdir",
    Place,
    None,
    "Folder of the run, also gs://BUCKET/FOLDER; may be given without the flag's name.",
)
_TRAIN = define_flag(
    "train_shards", str, "starter/train-*", "Labelled shards that probes learn from."
)
_TEST = define_flag(
    "test_shards", str, "starter/heldout-*", "Labelled shards that everything is scored on."
)
_OUTPUT = define_flag(
    "output",
    Place,
    None,
    "Folder of evaluation.json, also gs://BUCKET/FOLDER, made if missing, where WORKDIR may not be "
    "written.",
)


def main(argv: list[str]) -> None:
    """Evaluates the run that the command line names."""
    workdir = one_place(argv, _WORKDIR.value, "python -m pipelines.evaluate WORKDIR")
    from m3ae_tpu.evaluation.evaluate import evaluate_workdir
    from m3ae_tpu.run.claim import files_of, output_folder

    with files_of(workdir) as folder, output_folder(_OUTPUT.value) as output:
        evaluate_workdir(folder, _TRAIN.value, _TEST.value, output=output)


def run() -> None:
    """Entry point of the installed command `m3ae-evaluate`."""
    run_program(main)


if __name__ == "__main__":
    run()
