"""All evaluations of a trained run, written to `evaluation.json` and shown as a table."""

import concurrent.futures
import contextlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import rich
from rich.markup import escape
from rich.table import Table
from threadpoolctl import threadpool_limits

from m3ae_tpu.data.labelled import LabelledExamples, read_labelled
from m3ae_tpu.data.shards import Shards, open_shards
from m3ae_tpu.evaluation import caption_probes, heldout, image_probes
from m3ae_tpu.evaluation.examples import describe_examples, example_remarks
from m3ae_tpu.evaluation.protocol import Evaluation, Figures, Row, Subject
from m3ae_tpu.evaluation.results import EVALUATION
from m3ae_tpu.files import atomic_write
from m3ae_tpu.pretrained.loading import load_pretrained
from m3ae_tpu.pretrained.pretrained import Pretrained
from m3ae_tpu.probing.scores import Targets, standard_error
from m3ae_tpu.run.stages import report_stages
from m3ae_tpu.run.workdir import result_file

TRAIN_SHARDS, TEST_SHARDS = "starter/train-*", "starter/heldout-*"

EVALUATIONS: tuple[Evaluation, ...] = (image_probes, caption_probes, heldout)
"""Add one here: figures, table and report follow."""


def evaluate_workdir(
    workdir: pathlib.Path,
    train_shards: str,
    test_shards: str,
    *,
    output: pathlib.Path | None = None,
) -> None:
    """Evaluates the run in a directory, prints the main figures and writes `evaluation.json`.

    Args:
        workdir: The run's directory.
        train_shards: Labelled shards that probes learn from.
        test_shards: Labelled shards that everything is scored on.
        output: Another folder for `evaluation.json` than the run's, made if missing.

    Raises:
        UserError: the run, or the shards, cannot be read, or the file cannot be written.
    """
    path = result_file(workdir, output, EVALUATION)
    with report_stages() as report:
        report("loading the run")
        run = load_pretrained(workdir)
        figures = evaluate_run(run, report, train_shards=train_shards, test_shards=test_shards)
    print_figures(figures)
    atomic_write(path, json.dumps(figures, indent=2, allow_nan=False) + "\n")


def evaluate_run(
    run: Pretrained,
    report: Callable[[str], None],
    *,
    train_shards: str = TRAIN_SHARDS,
    test_shards: str = TEST_SHARDS,
) -> Figures:
    """Measures a run: `run/step`, `run/num_parameters`, `examples/...` and more.

    `start` of each module in `EVALUATIONS` explains its figures, `describe_examples` the examples.

    Args:
        run: The run; its newest checkpoint is measured.
        report: Called with a line at each stage.
        train_shards: Labelled shards that probes learn from.
        test_shards: Labelled shards that everything is scored on; they decide nothing.

    Raises:
        UserError: shards that cannot be read, or have no labels, or have labels that only the test
            examples have.
    """
    report("reading labelled examples")
    train_set, test_set = open_shards(train_shards), open_shards(test_shards)
    train = read_examples(run, train_set)
    test = read_examples(run, test_set, label_names=train.label_names)
    figures: Figures = {
        "run/step": run.step,
        "run/num_parameters": sum(leaf.size for leaf in jax.tree.leaves(run.model)),
    }
    with contextlib.ExitStack() as stack:
        # The probes' matrices are small: threads of BLAS would spend their time waiting for each
        # other.
        stack.enter_context(threadpool_limits(limits=1, user_api="blas"))
        threads = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
        stack.callback(threads.shutdown, cancel_futures=True)
        subject = Subject(
            run=run,
            untrained=run.init_model(),
            train=train,
            test=test,
            train_shards=train_set,
            test_shards=test_set,
            targets=Targets.of(train.labels, test.labels, train.groups),
            report=report,
            threads=threads,
        )
        figures |= describe_examples(subject)
        started = [evaluation.start(subject) for evaluation in EVALUATIONS]
        report("waiting for the probes")
        for wait in started:
            figures |= wait()
    return figures


def read_examples(
    run: Pretrained, shards: Shards, *, label_names: tuple[str, ...] | None = None
) -> LabelledExamples:
    """Reads labelled examples at the run's image size and text length.

    Raises:
        UserError: records that cannot be read or have no labels.
    """
    return read_labelled(
        shards,
        image_size=run.config.data.image_size,
        tokenizer=run.tokenizer,
        text_length=run.text_length,
        label_names=label_names,
    )


def all_rows(figures: Mapping[str, Any]) -> list[Row]:
    """Returns the rows of all evaluations for the figures of an `evaluation.json`."""
    return [row for evaluation in EVALUATIONS for row in evaluation.rows(figures)]


def print_figures(figures: Mapping[str, Any]) -> None:
    """Prints the figures of a run beside those that they are compared with, the best first."""
    table = Table("on held-out examples", "this run", "compared with")
    for row in all_rows(figures):
        if not row.values:
            table.add_row(row.title, "left out", escape(row.note))
        elif row.level != "detail":
            own = next(iter(row.values.values()))
            others = [f"{name} {value:.3f}" for name, value in row.baselines]
            table.add_row(row.title, f"{own:.3f}", ", ".join(others) or escape(row.note))
    rich.print(table)
    num_test = figures["examples/test"]
    error = standard_error(0.5, num_test)
    print(f"test examples: {num_test:,}; standard error of an accuracy: at most {error:.3f}")
    for remark in example_remarks(figures):
        print(remark)
