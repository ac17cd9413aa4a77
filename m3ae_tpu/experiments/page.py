"""The files of an outcome: tables, a plot, and one page that needs no other file."""

import html
import json
import pathlib
import re

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
from m3ae_tpu.page import page, section, tile, tiles
from m3ae_tpu.page import table as table_of


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
    description = next(iter(outcome.figures.values()))
    plots = "".join(
        f'<figure class="card"><h3>{html.escape(title)}</h3>{plot}</figure>'
        for title, plot in [(f"Here: {description}", _own_plot(outcome)), *_paper_plots(outcome)]
    )
    has_paper = bool(paper_columns(outcome))
    explained = "A dot is a seed, the mark their mean." + " The scales differ." * has_paper
    findings = "<p>The paper shows examples, and no number to compare with.</p>"
    if outcome.comparisons:
        findings = table_of(*findings_table(outcome))
    scale = "at the starter scale" if outcome.num_steps else "on given models"
    return page(
        title=experiment.title,
        topic=f"the paper's experiments, {scale}",
        lead=experiment.lead,
        main=[
            tiles([_tile(comparison) for comparison in outcome.comparisons]),
            section(
                "plots",
                "Here and in the paper" if has_paper else "Here",
                f'<p>{explained}</p>\n<div class="charts">{plots}</div>',
            ),
            outcome.images,
            section("table", "All figures", table_of(*table(outcome))),
            section("findings", "The paper's findings", findings),
            section(
                "notes",
                "How it was measured",
                "".join(f"<p>{_prose(sentence)}</p>" for sentence in notes(outcome)),
            ),
        ],
        command=outcome.command,
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
    return tile(comparison.finding.text, points, " · ".join(lines))


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
