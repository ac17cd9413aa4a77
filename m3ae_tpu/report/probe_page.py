"""The page of a probe, `probe.html`: accuracies beside baselines, and the classes it confuses."""

import html
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8

from m3ae_tpu.charts import Bar, BarGroup, bar_chart
from m3ae_tpu.files import atomic_write
from m3ae_tpu.page import missing, page, section, tile, tiles
from m3ae_tpu.probing.scores import standard_error
from m3ae_tpu.report.confusion import confusion
from m3ae_tpu.report.sections import percent

FILE_NAME = "probe.html"


def write_page(
    results: Mapping[str, Any],
    images: UInt8[np.ndarray, "examples size size 3"] | None,
    folder: pathlib.Path,
) -> pathlib.Path:
    """Writes the page of a probe and returns its path.

    Args:
        results: The content of `probe.json`.
        images: Images of the test examples, where they are known.
        folder: Folder of the page.
    """
    methods, num_test = results["methods"], results["test"]["examples"]
    folded = []
    for method in methods.values():
        if "confusion" in method:
            is_open = "" if folded else " open"
            folded.append(
                f"<details{is_open}><summary>{html.escape(method['title'])}</summary>"
                f"{confusion(method['confusion'], images)}</details>"
            )
    charts = "\n".join(_chart(method, num_test) for method in methods.values())
    confused = "".join(folded) or missing("No method here has one confusion.")
    text = page(
        title=_name(results),
        topic="probes of frozen features",
        lead=_lead(results),
        main=[
            tiles([_tile(method) for method in methods.values()]),
            section(
                "accuracies", "Accuracies beside baselines", f'<div class="charts">{charts}</div>'
            ),
            section("confusion", "Confused classes", confused),
        ],
        command="python -m pipelines.probe",
    )
    path = folder / FILE_NAME
    atomic_write(path, text)
    return path


def _name(results: Mapping[str, Any]) -> str:
    path = results["model"]["path"] if "model" in results else results["train"]["features"]
    return pathlib.PurePosixPath(path).name


def _lead(results: Mapping[str, Any]) -> str:
    train, test = results["train"], results["test"]
    model = results.get("model")
    step = f"The encoder after {model['step']:,} steps, frozen. " if model and model["step"] else ""
    return (
        f"{step}Classifiers learn from {train['examples']:,} examples "
        f"({train.get('shards', train.get('features'))}) of {len(results['labels'])} classes and "
        f"are scored on {test['examples']:,} ({test.get('shards', test.get('features'))})."
    )


def _tile(method: Mapping[str, Any]) -> str:
    values = {}
    for name, score in method["sources"].items():
        # Of few-shot probes the one of the most examples.
        values[name] = score["accuracy"] if "accuracy" in score else [*score.values()][-1]["mean"]
    (_, value), *others = values.items()
    title = method["title"]
    if "confusion" not in method:
        title += f", {[*next(iter(method['sources'].values()))][-1]} a class"
    baselines = " · ".join(f"{name} {percent(value)}" for name, value in others)
    return tile(title, percent(value), baselines)


def _chart(method: Mapping[str, Any], num_test: int) -> str:
    sources = method["sources"]
    if "confusion" in method:
        groups = {"": {name: score["accuracy"] for name, score in sources.items()}}
        errors = {"": {name: standard_error(v, num_test) for name, v in groups[""].items()}}
        settings = ", ".join(
            f"{name.replace('_', ' ')} {value}"
            for name, value in next(iter(sources.values()))["settings"].items()
        )
        heading = ""
        note = f"Features: {method['pooling']}. Chosen: {settings}. Whiskers: one standard error."
    else:
        shots = [*next(iter(sources.values()))]
        groups = {
            f"{k} a class": {n: score[k]["mean"] for n, score in sources.items()} for k in shots
        }
        errors = {
            f"{k} a class": {n: score[k]["deviation"] for n, score in sources.items()}
            for k in shots
        }
        draws = len(next(iter(sources.values()))[shots[0]]["accuracies"])
        heading = "By the number of examples"
        note = (
            f"Features: {method['pooling']}. Means of {draws} draws of examples. Whiskers: their "
            "standard deviation."
        )
    bars = [
        BarGroup(
            title=title,
            bars=[
                Bar(
                    name=name,
                    value=value,
                    label=f"{percent(value)} ± {percent(errors[title][name])}",
                    is_accented=number == 0,
                    error=errors[title][name],
                )
                for number, (name, value) in enumerate(values.items())
            ],
        )
        for title, values in groups.items()
    ]
    return (
        f'<figure class="card"><h3>{html.escape(method["title"])}</h3>{bar_chart(heading, bars)}'
        f'<p class="note">{html.escape(note)}</p></figure>'
    )
