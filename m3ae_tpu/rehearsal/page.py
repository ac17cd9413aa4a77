"""The report of rehearsals: one page that needs no other file, in the style of a run's report."""

import html
import importlib.resources
import pathlib
import string
from collections.abc import Sequence
from typing import Any

from m3ae_tpu import charts
from m3ae_tpu.charts import Bar, BarGroup, Stack
from m3ae_tpu.files import atomic_write
from m3ae_tpu.rehearsal import printed
from m3ae_tpu.rehearsal.estimates import Figures

_PARTS = {
    "parameters": "parameter_bytes_per_chip",
    "optimizer": "optimizer_bytes_per_chip",
    "activations": "activation_bytes_per_chip",
    "batch": "batch_bytes_per_chip",
}


def write_page(rehearsals: Sequence[Figures], name: str, path: pathlib.Path) -> None:
    """Writes the report of rehearsals.

    Args:
        rehearsals: Their figures, as `rehearse`, `sweep` or `sizes_for` return them.
        name: The config's name, the page's title.
        path: The report's file.
    """
    compiled = [row for row in rehearsals if "refused" not in row]
    timed = [row for row in compiled if row["step_seconds"] is not None]
    style = importlib.resources.files("m3ae_tpu.report").joinpath("report.css").read_text()
    template = importlib.resources.files(__package__).joinpath("page.html").read_text()
    page = string.Template(template).substitute(
        name=html.escape(name),
        style=f"{charts.STYLE}\n{style.strip()}",
        lead=html.escape(_lead(rehearsals)),
        tiles="".join(map(_tile, compiled)),
        memory=_memory(compiled) if compiled else "Nothing was compiled.",
        time=_time(timed) if timed else "No step fits.",
        collectives="".join(map(_collectives, timed)),
        figures="".join(map(_figures, compiled)),
    )
    atomic_write(path, page)


def title(figures: Figures) -> str:
    """Returns the name of one rehearsal among others: slice, mesh and settings."""
    words = [figures.get("config", ""), figures["topology"]]
    words += [printed.mesh_words(figures)]
    words += ["remat"] if figures["remat"] else []
    slices = figures["accumulation_steps"]
    words += [f"{slices} accumulation steps"] if slices > 1 else []
    return ", ".join(word for word in words if word)


def _lead(rehearsals: Sequence[Figures]) -> str:
    fitting = sum(row["fits"] for row in rehearsals)
    slices = ", ".join(dict.fromkeys(row["topology"] for row in rehearsals))
    many = len(rehearsals) > 1
    verdict = (
        f"{fitting} of {len(rehearsals)} settings fit"
        if many
        else ("the step fits" if fitting else "the step does not fit")
    )
    return f"Compiled for {slices}, without a chip: {verdict}."


def _tile(figures: Figures) -> str:
    peak, unit = printed.size(figures["peak_bytes_per_chip"]).split()
    capacity = printed.size(figures["capacity_bytes_per_chip"])
    verdict = "fits" if figures["fits"] else "does not fit"
    flags = [change["flags"] for change in figures.get("changes", [])]
    verdict += f", but does with {' or '.join(flags)}" if flags else ""
    return (
        f'<div class="card tile"><p class="name">{html.escape(title(figures))}</p>'
        f'<p class="value">{peak}<small> {unit}</small></p>'
        f'<p class="baselines">of {capacity}: {html.escape(verdict)}</p></div>'
    )


def _memory(rehearsals: Sequence[Figures]) -> str:
    stacks = [
        Stack(
            name=title(row),
            parts=[float(row[key]) for key in _PARTS.values()],
            label=f"{printed.size(row['peak_bytes_per_chip'])} at the peak, of "
            f"{printed.size(row['capacity_bytes_per_chip'])}",
            limit=float(row["capacity_bytes_per_chip"]),
        )
        for row in rehearsals
    ]
    return charts.stack_chart(list(_PARTS), stacks)


def _time(rehearsals: Sequence[Figures]) -> str:
    names = {
        "computing": "compute_seconds",
        "waiting": "waited_collective_seconds",
        "behind work": "overlapped_collective_seconds",
        "whole step": "step_seconds",
    }
    groups = [
        BarGroup(
            title=f"{title(row)}: {row['examples_per_second']:,.0f} examples/s",
            bars=[
                Bar(
                    name=name,
                    value=row[key],
                    label=printed.duration(row[key]),
                    is_accented=name == "whole step",
                )
                for name, key in names.items()
            ],
        )
        for row in rehearsals
    ]
    return charts.bar_chart("", [BarGroup(title="", bars=[]), *groups])


def _collectives(figures: Figures) -> str:
    heads = ("kind", "axis", "where", "dtype", "beside work")
    numbers = ("count", "bytes", "runs a step", "bytes a step")
    rows = []
    for group in figures["collectives"]:
        stack = f"{group['stack']} {group['direction']}" if group["stack"] else ""
        words = (
            group["kind"],
            group["axis"],
            f"{group['where']}{', ' if stack else ''}{stack}",
            group["dtype"],
            "yes" if group["is_asynchronous"] else "no",
        )
        amounts = (
            str(group["count"]),
            printed.size(group["bytes"]),
            str(group["runs_per_step"]),
            printed.size(group["bytes_per_step"]),
        )
        rows.append((words, amounts))
    return f"<h3>{html.escape(title(figures))}</h3>{_table(heads, numbers, rows)}"


def _figures(figures: Figures) -> str:
    rows = [((name.strip(), source), (value,)) for name, value, source in printed.lines(figures)]
    table = _table(("per step", "source"), ("figure",), rows)
    return f"<details open><summary>{html.escape(title(figures))}</summary>{table}</details>"


def _table(heads: Sequence[str], numbers: Sequence[str], rows: Sequence[Any]) -> str:
    """Returns a table: columns of words, then columns of numbers."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    head += "".join(f'<th class="number">{html.escape(name)}</th>' for name in numbers)
    body = "".join(
        "<tr>"
        + "".join(f"<td>{html.escape(word)}</td>" for word in words)
        + "".join(f'<td class="number">{html.escape(amount)}</td>' for amount in amounts)
        + "</tr>"
        for words, amounts in rows
    )
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'
