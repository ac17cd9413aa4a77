"""Probes of frozen features by several methods, shown as a table and written to `probe.json`."""

import contextlib
import dataclasses
import json
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import rich
import rich.progress
from rich.table import Table
from threadpoolctl import threadpool_limits

from m3ae_tpu.evaluation.probe_methods import MethodScores, ProbeOptions, run_method
from m3ae_tpu.evaluation.probe_sources import ProbeTask
from m3ae_tpu.files import atomic_write
from m3ae_tpu.probing.confusion import describe_confusion
from m3ae_tpu.probing.descent import Progress
from m3ae_tpu.probing.few_shot import FewShotScore, require_shots
from m3ae_tpu.probing.scores import ProbeScore, standard_error

FILE_NAME = "probe.json"
_LARGE_SET = 20_000
"""Training examples from which on several threads of BLAS are worth their waiting."""


def probe(task: ProbeTask, options: ProbeOptions) -> dict[str, Any]:
    """Scores every method and returns the content of `probe.json`.

    `methods/NAME/SOURCE` holds accuracy, balanced accuracy, validation accuracy and what was
    chosen; `methods/NAME/confusion` the confusion of classes by the first source; of `few_shot`
    each number of examples holds mean, deviation and the accuracy of every draw.

    Raises:
        UserError: the examples lack what a method needs.
    """
    if "few_shot" in options.methods:
        require_shots(task.targets.train, task.label_names, options.shots)
    limit = None if len(task.targets.train) > _LARGE_SET else 1
    with _stages() as report, threadpool_limits(limits=limit, user_api="blas"):
        found = [
            run_method(method, task.sources, task.targets, options, task.mesh, report)
            for method in options.methods
        ]
    return {
        **task.facts,
        "labels": list(task.label_names),
        "seed": options.seed,
        "methods": {each.method: _described(each, task) for each in found},
    }


def write_probe(results: Mapping[str, Any], folder: pathlib.Path) -> None:
    """Writes `probe.json`."""
    atomic_write(folder / FILE_NAME, json.dumps(results, indent=1, allow_nan=False) + "\n")


def print_results(results: Mapping[str, Any]) -> None:
    """Prints the accuracies of the first source beside those of the others."""
    names = [name for each in results["methods"].values() for name in each["sources"]]
    names = list(dict.fromkeys(names))
    num_test = results["test"]["examples"]
    table = Table("accuracy on test examples", *names, "pooling")
    for method, each in results["methods"].items():
        if method == "few_shot":
            for shots in each["sources"][names[0]]:
                cells = [
                    f"{each['sources'][name][shots]['mean']:.3f} ± "
                    f"{each['sources'][name][shots]['deviation']:.3f}"
                    if name in each["sources"]
                    else ""
                    for name in names
                ]
                table.add_row(f"{each['title']}, {shots} a class", *cells, each["pooling"])
            continue
        cells = []
        for name in names:
            score = each["sources"].get(name)
            error = standard_error(score["accuracy"], num_test) if score else 0.0
            cells.append(f"{score['accuracy']:.3f} ± {error:.3f}" if score else "")
        table.add_row(each["title"], *cells, each["pooling"])
    rich.print(table)
    print(
        f"{results['train']['examples']:,} training and {num_test:,} test examples of "
        f"{len(results['labels'])} classes; ± is a standard error, of draws their deviation"
    )


def _described(found: MethodScores, task: ProbeTask) -> dict[str, Any]:
    sources: dict[str, Any] = {name: _of_score(score) for name, score in found.scores.items()}
    sources |= {name: _of_draws(scores) for name, scores in found.few_shot.items()}
    described = {"title": found.title, "pooling": found.pooling, "sources": sources}
    if found.scores:
        predicted = next(iter(found.scores.values())).predicted
        described["confusion"] = describe_confusion(task.targets.test, predicted, task.label_names)
    return described


def _of_score(score: ProbeScore) -> dict[str, Any]:
    fields = dataclasses.asdict(score)
    del fields["predicted"]
    return fields


def _of_draws(scores: Sequence[FewShotScore]) -> dict[str, Any]:
    return {
        str(score.shots): {
            "mean": score.mean,
            "deviation": score.deviation,
            "accuracies": [draw.accuracy for draw in score.draws],
        }
        for score in scores
    }


@contextlib.contextmanager
def _stages() -> Iterator[Callable[[str], Progress]]:
    """Yields a function that shows a stage, a bar on a terminal or else a line."""
    columns = rich.progress.Progress.get_default_columns()
    is_terminal = sys.stdout.isatty()
    with rich.progress.Progress(*columns, transient=True, disable=not is_terminal) as bars:
        tasks: list[rich.progress.TaskID] = []

        def report(stage: str) -> Progress:
            if not is_terminal:
                print(stage, flush=True)
            for task in tasks:
                bars.remove_task(task)
            tasks[:] = [bars.add_task(stage, total=None)]
            this = tasks[0]
            return lambda share: bars.update(this, completed=share, total=1.0)

        yield report
