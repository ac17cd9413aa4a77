"""A measure of models that are trained already, on examples that the user names."""

import pathlib
from collections.abc import Sequence

from m3ae_tpu.errors import require
from m3ae_tpu.experiments import measuring
from m3ae_tpu.experiments.outcome import Outcome
from m3ae_tpu.experiments.page import write_outcome
from m3ae_tpu.experiments.variant import Experiment
from m3ae_tpu.files import place
from m3ae_tpu.pretrained.loading import load
from m3ae_tpu.pretrained.pretrained import Pretrained


def measure_models(
    experiment: Experiment,
    models: Sequence[str],
    output: pathlib.Path,
    *,
    train_shards: str,
    test_shards: str,
    foreign_shards: str,
    command: str,
) -> None:
    """Measures models and writes table, plot and page.

    Args:
        experiment: One whose measure is not the linear probe.
        models: Workdirs or model folders, also in buckets.
        output: Folder of the results, made if missing; one that has results is refused.
        train_shards: Labelled shards to learn from.
        test_shards: Labelled shards to measure on.
        foreign_shards: Labelled shards of foreign images; empty: made ones.
        command: Shown beside the results.

    Raises:
        UserError: a model or shards that cannot be read, or a model that lacks what is measured.
    """
    require(
        experiment.measure != "probe",
        f"--model does not go with --experiment={experiment.name}, which trains its own. "
        "To probe a model: python -m pipelines.probe --model=WORKDIR.",
    )
    require(
        not (output / "results.json").exists(),
        f"--output = {output} has results already. Name a new folder.",
    )
    runs: dict[str, Pretrained] = {}
    for folder in models:
        print(f"loading {folder}", flush=True)
        name = str(place("--model", folder)).rstrip("/").rpartition("/")[2]
        runs[name if name not in runs else folder] = load(folder)
    scores, images, count = {}, "", 0
    for name, run in runs.items():
        require(
            run.task.has_images,
            f"--model = {name} has learned texts only. Name one that has learned images.",
        )
        print(f"measuring {name}", flush=True)
        examples = measuring.read_examples(
            run.config,
            run.tokenizer,
            train_shards=train_shards,
            test_shards=test_shards,
            foreign_shards=foreign_shards,
        )
        scores[name] = {0: measuring.measure(experiment.measure, run, examples)}
        images += measuring.show_images(experiment.measure, {name: run}, examples)
        count = len(examples.test)
    output.mkdir(parents=True, exist_ok=True)
    outcome = Outcome(
        experiment=experiment,
        scores=scores,
        num_steps=None,
        num_test=count,
        command=command,
        images=images,
    )
    write_outcome(output, outcome, is_printed=True)
