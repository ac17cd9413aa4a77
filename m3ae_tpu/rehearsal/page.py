"""The report of rehearsals: one page that needs no other file, in the style of a run's report."""

import html
import pathlib
from collections.abc import Sequence

from m3ae_tpu import charts
from m3ae_tpu.charts import Bar, BarGroup, Stack
from m3ae_tpu.files import atomic_write
from m3ae_tpu.page import page, section, table, tile, tiles
from m3ae_tpu.rehearsal import printed
from m3ae_tpu.rehearsal.estimates import Figures

_PARTS = {
    "parameters": "parameter_bytes_per_chip",
    "optimizer": "optimizer_bytes_per_chip",
    "activations": "activation_bytes_per_chip",
    "batch": "batch_bytes_per_chip",
}


_MEMORY = """<p>The peak is the compiler's figure, and the dashed line is what a chip has for a
program. Activations are what is in use at the peak beside parameters, moments and the batch.</p>"""
_TIME = """<p>Estimated, a floor: each operation counts by its work, as replays of operations like
it say, or by its memory traffic, our kernels by their FLOPs at the chip's peak, collectives by the
bandwidth of the links. Collectives behind work cost nothing. Nothing was measured on a chip.</p>"""


def write_page(rehearsals: Sequence[Figures], name: str, path: pathlib.Path) -> None:
    """Writes the report of rehearsals.

    Args:
        rehearsals: Their figures, as `rehearse`, `sweep` or `sizes_for` return them.
        name: The config's name, the page's title.
        path: The report's file.
    """
    compiled = [row for row in rehearsals if "refused" not in row]
    timed = [row for row in compiled if row["step_seconds"] is not None]
    memory = _memory(compiled) if compiled else "Nothing was compiled."
    time = _time(timed) if timed else "No step fits."
    text = page(
        title=name,
        topic="rehearsal",
        lead=_lead(rehearsals),
        main=[
            tiles([_tile(row) for row in compiled]),
            section(
                "memory", "Memory of a chip", _MEMORY + f'<figure class="card">{memory}</figure>'
            ),
            section("time", "Time of a step", _TIME + f'<figure class="card">{time}</figure>'),
            section("collectives", "Collectives", "".join(map(_collectives, timed))),
            section("figures", "All figures", "".join(map(_figures, compiled))),
        ],
        command="python -m pipelines.rehearse",
    )
    atomic_write(path, text)


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
    return tile(title(figures), f"{peak}<small> {unit}</small>", f"of {capacity}: {verdict}")


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
        rows.append(words + amounts)
    shown = table(heads + numbers, rows, num_numbers=len(numbers))
    return f"<h3>{html.escape(title(figures))}</h3>{shown}"


def _figures(figures: Figures) -> str:
    rows = [(name.strip(), source, value) for name, value, source in printed.lines(figures)]
    shown = table(("per step", "source", "figure"), rows, num_numbers=1)
    return f"<details open><summary>{html.escape(title(figures))}</summary>{shown}</details>"
