"""The files of an outcome: tables, a plot, and one page that needs no other file."""

import html
import importlib.resources
import json
import pathlib
import re
import string

from m3ae_tpu import charts
from m3ae_tpu.charts import Level
from m3ae_tpu.experiments.experiments import UNTRAINED
from m3ae_tpu.experiments.outcome import (
    Outcome,
    as_json,
    findings_table,
    markdown,
    notes,
    paper_columns,
    show_value,
    table,
)
from m3ae_tpu.experiments.plot import Dots, dot_plot
from m3ae_tpu.experiments.summary import Comparison, spreads
from m3ae_tpu.files import atomic_write


def write_outcome(output: pathlib.Path, outcome: Outcome, *, is_printed: bool = False) -> None:
    """Writes `results.json`, `table.md`, `plot.svg` and `report.html`.

    Args:
        output: Their folder.
        outcome: What was measured so far.
        is_printed: Prints the tables, and where the page is.
    """
    atomic_write(output / "results.json", json.dumps(as_json(outcome), indent=2) + "\n")
    atomic_write(output / "table.md", markdown(outcome))
    atomic_write(output / "plot.svg", charts.svg_file(_own_plot(outcome)))
    atomic_write(output / "report.html", _page(outcome))
    if is_printed:
        print(f"\n{markdown(outcome)}\nreport: {output / 'report.html'}", flush=True)


def _page(outcome: Outcome) -> str:
    experiment = outcome.experiment
    folder = importlib.resources.files(__package__)
    style = importlib.resources.files("m3ae_tpu.report").joinpath("report.css").read_text()
    description = next(iter(outcome.figures.values()))
    findings = ""
    if outcome.comparisons:
        findings = _table(*findings_table(outcome))
    return string.Template((folder / "page.html").read_text()).substitute(
        title=html.escape(experiment.title),
        style=f"{charts.STYLE}\n{style.strip()}",
        scale="the paper's experiments, at the starter scale"
        if outcome.num_steps
        else "the paper's experiments, on given models",
        lead=html.escape(experiment.lead),
        tiles="".join(map(_tile, outcome.comparisons)),
        plots_title="Here and in the paper" if paper_columns(outcome) else "Here",
        plots_text="A dot is a seed, the mark their mean."
        + (" The scales differ." if paper_columns(outcome) else ""),
        plots="".join(
            f'<figure class="card"><h3>{html.escape(title)}</h3>{plot}</figure>'
            for title, plot in [
                (f"Here: {description}", _own_plot(outcome)),
                *_paper_plots(outcome),
            ]
        ),
        images=outcome.images,
        table=_table(*table(outcome)),
        findings=findings or "<p>The paper shows examples, and no number to compare with.</p>",
        notes="".join(f"<p>{_prose(sentence)}</p>" for sentence in notes(outcome)),
        command=html.escape(outcome.command),
    )


def _prose(sentence: str) -> str:
    """Returns a sentence as HTML, with what stands in backquotes as code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", html.escape(sentence))


def _tile(comparison: Comparison) -> str:
    error = comparison.standard_error
    spread = "" if error is None else f" ± {100 * error:.1f}"
    points = f"{100 * comparison.difference:+.1f}<small>{spread} points</small>"
    paper = ", ".join(f"{value:+.1f} ({version})" for version, value in comparison.paper.items())
    lines = [comparison.verdict, *([f"paper {paper}"] if paper else [])]
    return (
        f'<div class="card tile"><p class="name">{html.escape(comparison.finding.text)}</p>'
        f'<p class="value">{points}</p>'
        f'<p class="baselines">{html.escape(" · ".join(lines))}</p></div>'
    )


def _own_plot(outcome: Outcome) -> str:
    figure = next(iter(outcome.figures))
    lines = _lines(outcome)
    rows = [
        Dots(name=name, values=spread.values, line=lines[name])
        for name in outcome.names
        if name != UNTRAINED and (spread := spreads(outcome.scores, name, figure))
    ]
    untrained = spreads(outcome.scores, UNTRAINED, figure)
    level = Level(name="untrained", value=untrained.mean) if untrained else None
    return dot_plot(rows, show=lambda value: show_value(outcome, figure, value), level=level)


def _paper_plots(outcome: Outcome) -> list[tuple[str, str]]:
    """Returns title and plot for each figure and version of the paper."""
    lines, plots = _lines(outcome), []
    for figure, version in paper_columns(outcome):
        rows = [
            Dots(
                name=variant.name,
                values=[variant.paper[figure][version]],
                line=lines.get(variant.name, 0),
            )
            for variant in outcome.experiment.variants
            if version in variant.paper.get(figure, {})
        ]
        title = f"Paper, {version}: {outcome.figures[figure].replace(', held out', '')}"
        plots.append((title, dot_plot(rows, show="{:.1f}".format)))
    return plots


def _lines(outcome: Outcome) -> dict[str, int]:
    """Returns a colour for each name: variants without text have the second."""
    lines = dict.fromkeys(outcome.names, 0)
    for variant in outcome.experiment.variants:
        has_text = variant.starter.overrides.get("model.vocab_size", 1) > 0
        lines[variant.name] = 2 if variant.method != "reconstruction" else 0 if has_text else 1
    return lines


def _table(heads: list[str], rows: list[list[str]]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    body = "".join(
        f"<tr>{''.join(f'<td>{html.escape(text)}</td>' for text in row)}</tr>" for row in rows
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'
