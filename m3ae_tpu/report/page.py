"""The report of a run: one page, `report.html`, that needs no other file."""

import pathlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import rich
from jaxtyping import UInt8

from m3ae_tpu.config import FinetuneConfig, PretrainConfig
from m3ae_tpu.data.labelled import LabelledExamples
from m3ae_tpu.data.shards import open_shards
from m3ae_tpu.errors import UserError
from m3ae_tpu.evaluation.evaluate import TEST_SHARDS, TRAIN_SHARDS, read_examples
from m3ae_tpu.evaluation.results import read_evaluation
from m3ae_tpu.files import atomic_write
from m3ae_tpu.page import page, section, tiles
from m3ae_tpu.pretrained.loading import has_model, is_finetuned, load_pretrained
from m3ae_tpu.pretrained.pretrained import Pretrained
from m3ae_tpu.report import sections
from m3ae_tpu.report.confusion import confusion
from m3ae_tpu.report.curves import curves
from m3ae_tpu.report.examples import ShownExample, show_examples
from m3ae_tpu.report.measured import Shown, measured
from m3ae_tpu.report.neighbours import Neighbours, find_neighbours
from m3ae_tpu.report.sections import NO_CHECKPOINT
from m3ae_tpu.report.strips import strips
from m3ae_tpu.report.wall_time import wall_time
from m3ae_tpu.report.word_gains import WordGains, measure_word_gains
from m3ae_tpu.report.word_section import word_section
from m3ae_tpu.run import goodput
from m3ae_tpu.run.metrics import read_metrics
from m3ae_tpu.run.workdir import load_run_config, result_file
from m3ae_tpu.storage.mirror import address_of

FILE_NAME = "report.html"


def report_workdir(
    workdir: pathlib.Path, test_shards: str = "", *, output: pathlib.Path | None = None
) -> pathlib.Path:
    """Writes the report of the run in a directory and returns its path.

    Args:
        workdir: The run's directory.
        test_shards: Labelled shards whose examples are shown; empty: those that the run was
            evaluated on, or the starter set's.
        output: Another folder for the report than the run's, made if missing; its
            `evaluation.json` is shown if it has one.

    Raises:
        UserError: the directory holds no run, the shards cannot be read, or the report cannot be
            written.
    """
    path = result_file(workdir, output, FILE_NAME)
    config_type = FinetuneConfig if is_finetuned(workdir) else PretrainConfig
    config, examples, versions = load_run_config(workdir, config_type), None, {}
    evaluation = (read_evaluation(output) if output else {}) or read_evaluation(workdir)
    shown, images, usual = None, None, TEST_SHARDS
    gains = neighbours = NO_CHECKPOINT
    if isinstance(config, FinetuneConfig) and config.evaluation.shards:
        usual = config.evaluation.shards
    test_shards = test_shards or evaluation.get("examples/test_shards", usual)
    with rich.get_console().status("reconstructing some held-out examples"):
        if has_model(workdir):
            run, shards = load_pretrained(workdir), open_shards(test_shards)
            labelled = read_examples(run, shards)
            examples = show_examples(run, labelled)
            gains = measure_word_gains(run, labelled)
            neighbours = _neighbours(run, labelled, test_shards, evaluation)
            if shards.digest == evaluation.get("examples/test_digest"):
                images = labelled.images
            versions, shown = run.versions, Shown(run.step, shards.pattern, shards.digest)
    return write_report(
        workdir,
        config,
        metrics=read_metrics(workdir),
        seconds=goodput.wall_time(goodput.read_goodput(workdir)),
        evaluation=evaluation,
        examples=examples,
        gains=gains,
        neighbours=neighbours,
        versions=versions,
        shown=shown,
        images=images,
        path=path,
    )


def write_report(
    workdir: pathlib.Path,
    config: PretrainConfig | FinetuneConfig,
    *,
    metrics: Sequence[Mapping[str, Any]],
    evaluation: Mapping[str, Any],
    examples: Sequence[ShownExample] | None,
    gains: WordGains | str,
    neighbours: Neighbours | str,
    versions: Mapping[str, str],
    shown: Shown | None = None,
    images: UInt8[np.ndarray, "examples size size 3"] | None = None,
    seconds: Mapping[str, float] | None = None,
    path: pathlib.Path,
) -> pathlib.Path:
    """Writes a report and returns its path; an interruption leaves the earlier page.

    Args:
        workdir: The run's directory; its last name is the page's title.
        config: The run's settings.
        metrics: Lines of `metrics.jsonl`, oldest first; may be empty.
        evaluation: The figures of `evaluation.json`; may be empty.
        examples: Results of `show_examples`; None for a run without a checkpoint.
        gains: Result of `measure_word_gains`, or a sentence that says why there is none.
        neighbours: Result of `find_neighbours`, or such a sentence.
        versions: Versions of the packages that trained the run.
        shown: What the examples show; None as for `examples`.
        images: Images of the test examples that were evaluated; None if they are not at hand.
        seconds: Parts of the run's wall time; None for a run that did not measure it.
        path: The report's file.
    """
    address = address_of(workdir)
    features = sections.features(evaluation, address) + _confusion(evaluation, images)
    reconstruction = sections.reconstruction(examples, evaluation, config)
    packages = dict(versions) | {"python": platform.python_version()}
    is_finetuning = isinstance(config, FinetuneConfig)
    text = page(
        title=workdir.resolve().name,
        topic=f"{'fine-tuning' if is_finetuning else 'pre-training'} report",
        lead=_lead(config, metrics, evaluation),
        main=[
            tiles(sections.main_figures(evaluation, metrics)),
            measured(evaluation, shown, address),
            section("features", "Classification by frozen features", features),
            section("neighbours", "Nearest neighbours", strips(neighbours)),
            section("reconstruction", "Reconstruction of hidden patches and words", reconstruction),
            section("words", "What the image adds to its words", word_section(gains)),
            section("attention", "Attention of words to patches", sections.attention(examples)),
            section(
                "training", "Training", curves(metrics, evaluation, first=wall_time(seconds or {}))
            ),
            section("data", "Data", sections.data(config, metrics)),
            section("settings", "Settings and versions", sections.settings(config, packages)),
        ],
        command=f"python -m pipelines.report {address}",
    )
    atomic_write(path, text)
    return path


def _neighbours(
    run: Pretrained, test: LabelledExamples, test_shards: str, evaluation: Mapping[str, Any]
) -> Neighbours | str:
    """Returns neighbours among the examples that probes learn from, or why there are none."""
    usual = TRAIN_SHARDS if test_shards == TEST_SHARDS else ""
    train_shards = evaluation.get("examples/train_shards", usual)
    if not train_shards:
        return "The run is not evaluated yet: an evaluation names the training examples to search."
    try:
        return find_neighbours(run, test, train_shards, evaluation.get("knn/pooling", "mean"))
    except UserError as error:
        return f"The training examples cannot be searched: {error}"


def _confusion(evaluation: Mapping[str, Any], images: np.ndarray | None) -> str:
    """Returns the mistakes of the linear probe of images, folded; nothing without one."""
    described = evaluation.get("confusion/linear_probe")
    if described is None:
        return ""
    return (
        "<details><summary>Linear probe, images: confused classes</summary>"
        f"{confusion(described, images)}</details>"
    )


def _lead(
    config: PretrainConfig | FinetuneConfig,
    metrics: Sequence[Mapping[str, Any]],
    evaluation: Mapping[str, Any],
) -> str:
    """Returns a sentence on the data, the model and the length of the run."""
    encoder, kinds = config.model.encoder, {source.kind for source in config.data.sources}
    nouns = {"paired": "images with captions", "image": "images", "text": "texts"}
    done = metrics[-1]["step"] if metrics else evaluation.get("run/step", 0)
    steps = f"{done:,} steps"
    if done != config.num_steps:
        steps = f"{done:,} of {config.num_steps:,} steps"
    if isinstance(config, FinetuneConfig):
        nouns["image"] = f"images of {len(config.classes):,} classes"
    learned = [noun for kind, noun in nouns.items() if kind in kinds]
    learned = " and ".join([", ".join(learned[:-1]), learned[-1]] if learned[1:] else learned)
    is_imported = not any(source.shards for source in config.data.sources)
    origin = (
        "weights of another program"
        if is_imported
        else f"{steps} of {config.batch_size:,} examples"
    )
    phrases = [
        f"Learned from {learned}: {origin}",
        f"an encoder of {encoder.num_layers} blocks and width {encoder.width}",
    ]
    if kinds != {"text"}:
        phrases.append(f"{config.data.image_size} px in patches of {config.model.patch_size}")
    if evaluation:
        phrases.append(f"{evaluation['run/num_parameters'] / 1e6:.1f} million parameters")
    if metrics:
        phrases.append(f"{_duration(_training_seconds(metrics))} of training")
    return f"{', '.join(phrases)}; seed {config.seed}."


def _training_seconds(metrics: Sequence[Mapping[str, Any]]) -> float:
    """Returns the time of all steps, each at the rate of the line that covers it.

    The start of the run, with its compilation, is left out.
    """
    steps = [0, *(line["step"] for line in metrics)]
    rates = [line.get("time/seconds_per_step", 0.0) for line in metrics]
    return sum((b - a) * rate for a, b, rate in zip(steps, steps[1:], rates, strict=False))


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} seconds"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} minutes"
    return f"{seconds / 3600:.1f} hours"
