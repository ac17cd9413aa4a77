"""Measures what a run has learned, on held-out examples, and writes WORKDIR/evaluation.json.

    python -m pipelines.evaluate runs/quickstart

Probes of frozen features beside an untrained encoder and raw input, and the pre-training task
itself. Takes the newest checkpoint; a run may go on meanwhile. `m3ae_tpu/evaluation/evaluate.py`
explains every figure.
"""

import json
import os
import pathlib
from typing import Any

from absl import flags

from m3ae_tpu.command_line import run_program
from m3ae_tpu.errors import UserError
from m3ae_tpu.files import atomic_write

_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; may also be given without the flag's name."
)
_TRAIN = flags.DEFINE_string(
    "train_shards", "starter/train-*", "Labelled shards that probes learn from."
)
_TEST = flags.DEFINE_string(
    "test_shards", "starter/heldout-*", "Labelled shards that all is scored on."
)


def evaluate(workdir: pathlib.Path, train_shards: str, test_shards: str) -> dict[str, Any]:
    """Measures the run in `workdir`, writes `evaluation.json` in one piece and returns its content."""
    # The probes' matrices are small: BLAS threads would spend their time waiting for each other.
    # JAX has its own.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    import rich

    from m3ae_tpu.evaluation.evaluate import evaluate_run
    from m3ae_tpu.evaluation.trained_run import EVALUATION, load_trained_run

    console = rich.get_console()
    with console.status("loading the run") as status:

        def tell(stage: str) -> None:
            status.update(stage)
            if not console.is_terminal:
                print(stage, flush=True)

        run = load_trained_run(workdir)
        results = evaluate_run(run, tell, train_shards=train_shards, test_shards=test_shards)
    path = workdir / EVALUATION
    atomic_write(path, json.dumps(results, indent=2, allow_nan=False) + "\n")
    return results


_PROBES = {
    "linear_probe": "linear probe",
    "knn": "neighbours",
    "linear_probe_image_and_text": "linear, with caption",
}


def show(results: dict[str, Any]) -> None:
    """Prints the main figures."""
    import rich
    from rich.table import Table

    from m3ae_tpu.evaluation.probes import standard_error

    probed = [probe for probe in _PROBES if f"{probe}/pretrained" in results]
    if probed:
        table = Table("accuracy", *(_PROBES[probe] for probe in probed))
        for name in ("pretrained", "untrained", "raw_pixels", "bag_of_words"):
            cells = [results.get(f"{probe}/{name}") for probe in probed]
            shown = ["" if cell is None else f"{cell:.3f}" for cell in cells]
            table.add_row(name.replace("_", " "), *shown, end_section=name == "bag_of_words")
        table.add_row("features", *(results[f"{probe}/pooling"] for probe in probed))
        rich.print(table)
        num_test = results["examples/test"]
        print(
            f"on {num_test:,} held-out examples; one standard error: {standard_error(0.5, num_test):.3f}"
        )
    for name, value in results.items():
        if name.startswith("heldout/"):
            print(f"{name:<46} {value:.4f}")


def main(argv: list[str]) -> None:
    """Reads the command line; everything else is `evaluate` and `show`."""
    named = [*([_WORKDIR.value] if _WORKDIR.value else []), *argv[1:]]
    if len(named) != 1:
        raise UserError("Name one workdir: python -m pipelines.evaluate WORKDIR.")
    show(evaluate(pathlib.Path(named[0]), _TRAIN.value, _TEST.value))


def run() -> None:
    """Entry point of the installed command `m3ae-evaluate`."""
    run_program(main)


if __name__ == "__main__":
    run()
