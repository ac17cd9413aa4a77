"""Rehearsals as tables in a terminal."""

from collections.abc import Callable, Sequence
from typing import Any

import rich
from rich.markup import escape
from rich.table import Table

from m3ae_tpu.rehearsal.estimates import Figures


def size(num_bytes: float | int) -> str:
    """Formats bytes in the unit that suits them."""
    for unit, bytes_of_unit in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if num_bytes >= bytes_of_unit:
            return f"{num_bytes / bytes_of_unit:.4g} {unit}"
    return f"{num_bytes:.0f} B"


def duration(seconds: float | int) -> str:
    """Formats a time in the unit that suits it."""
    if seconds == 0:
        return "0"
    for unit, seconds_of_unit in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= seconds_of_unit:
            return f"{seconds / seconds_of_unit:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"


def days(value: float | int) -> str:
    """Formats days, or hours where they are few."""
    return f"{value:,.1f} days" if value >= 2 else f"{value * 24:.3g} hours"


def mesh_words(figures: Figures) -> str:
    """Returns the sizes of the mesh axes, as `data 16 x fsdp 16`."""
    return " x ".join(f"{name} {count}" for name, count in figures["mesh"].items() if count > 1)


def lines(figures: Figures) -> list[tuple[str, str, str]]:
    """Returns the figures of a rehearsal as rows: what, how much, and who says so."""
    sources = figures["sources"]

    def row(name: str, key: str, value: str) -> tuple[str, str, str]:
        return name, value, sources.get(key, "")

    rows = [
        row("peak memory of a chip", "peak_bytes_per_chip", size(figures["peak_bytes_per_chip"])),
        row("  of", "capacity_bytes_per_chip", size(figures["capacity_bytes_per_chip"])),
        row("  parameters", "parameter_bytes_per_chip", size(figures["parameter_bytes_per_chip"])),
        row("  optimizer", "optimizer_bytes_per_chip", size(figures["optimizer_bytes_per_chip"])),
        row(
            "  activations", "activation_bytes_per_chip", size(figures["activation_bytes_per_chip"])
        ),
        row("work of a chip", "flops_per_chip", f"{figures['flops_per_chip'] / 1e12:.3g} TFLOP"),
    ]
    if figures["hbm_bytes"] is not None:
        rows.append(
            row("memory traffic of a chip", "hbm_bytes", f"{figures['hbm_bytes'] / 1e9:.3g} GB")
        )
    seconds = figures["compile_seconds"]
    rows.append(row("compile time, here", "compile_seconds", f"{seconds:.0f} s"))
    if figures["step_seconds"] is None:
        return rows
    waited = duration(figures["waited_collective_seconds"])
    hidden = duration(figures["overlapped_collective_seconds"])
    rate, host = figures["examples_per_second"], figures["loader_examples_per_second_per_host"]
    return [
        *rows,
        row("step, floor", "step_seconds", duration(figures["step_seconds"])),
        row("step, ceiling", "step_ceiling_seconds", duration(figures["step_ceiling_seconds"])),
        row("  computing", "compute_seconds", duration(figures["compute_seconds"])),
        row("  waiting for collectives", "waited_collective_seconds", waited),
        row("  collectives behind work", "overlapped_collective_seconds", hidden),
        row("examples", "examples_per_second", f"{rate:,.0f}/s"),
        row("model FLOPs utilisation", "mfu", f"{figures['mfu']:.1%}"),
        row("  at most, by peak, memory, links", "mfu_bound", f"{figures['mfu_bound']:.1%}"),
        row(
            "loader of each host", "loader_examples_per_second_per_host", f"{host:,.0f} examples/s"
        ),
        row("  cores for it", "host_cores", f"{figures['host_cores']:.1f}"),
        row(f"{figures['num_steps']:,} steps", "days", days(figures["days"])),
        row("  chip-hours", "chip_hours", f"{figures['chip_hours']:,.0f}"),
    ]


def print_rehearsal(figures: Figures, name: str) -> None:
    """Prints the figures of a config on a slice, its collectives, and what would make it fit."""
    verdict = "fits" if figures["fits"] else "does not fit"
    title = (
        f"{name} on {figures['topology']}: {figures['chips']} chips, {figures['hosts']} hosts, "
        f"{mesh_words(figures) or 'one device'}, {figures['batch_size']:,} rows: {verdict}"
    )
    table = Table(title=escape(title), title_justify="left")
    table.add_column("per step")
    table.add_column("", justify="right")
    table.add_column("source")
    for row in lines(figures):
        table.add_row(*row)
    rich.print(table)
    if figures["collectives"]:
        rich.print(_collectives(figures["collectives"]))
    if not figures["fits"]:
        print(_verdict(figures))


def _verdict(figures: Figures) -> str:
    needs = (
        f"It does not fit: it needs {size(figures['peak_bytes_per_chip'])} of a chip's "
        f"{size(figures['capacity_bytes_per_chip'])}."
    )
    changes = [
        f"  {change['flags']}: peak {size(change['figures']['peak_bytes_per_chip'])}, "
        f"a step of {duration(change['figures']['step_seconds'])}"
        for change in figures["changes"]
    ]
    if not changes:
        return f"{needs} No change of mesh.fsdp, model.remat or accumulation that was tried fits."
    return "\n".join([f"{needs} The cheapest changes that were tried and fit:", *changes])


def _collectives(groups: Sequence[dict[str, Any]]) -> Table:
    """Returns the collectives of a kind, axis and place in one row; those of a loop add up."""
    rows: dict[tuple[str, str, str], list[int]] = {}
    for group in groups:
        totals = rows.setdefault((group["kind"], group["axis"], group["where"]), [0, 0, 0, 0])
        totals[0] += group["count"]
        totals[1] += group["bytes"]
        totals[2] += group["bytes_per_step"]
        totals[3] += group["bytes_per_step"] if group["is_asynchronous"] else 0
    table = Table(
        title="collectives, by the compiler; hidden: behind other work in its schedule",
        title_justify="left",
        padding=(0, 0),
    )
    for name in ("kind", "axis", "place"):
        table.add_column(name, no_wrap=True)
    for name in ("count", "bytes", "a step", "hidden"):
        table.add_column(name, justify="right", no_wrap=True)
    for (kind, axis, where), (count, num_bytes, of_step, hidden) in rows.items():
        place = where.removeprefix("in the ")
        share = f"{hidden / of_step:.0%}" if of_step else ""
        table.add_row(kind, axis, place, str(count), size(num_bytes), size(of_step), share)
    return table


def print_sweep(rows: Sequence[Figures], name: str) -> None:
    """Prints the settings of a sweep, quickest first."""
    title = f"{name} on {rows[0]['topology']}"
    table = Table(title=escape(title), title_justify="left")
    table.add_column("settings")
    for heading in ("peak", "state", "step", "examples/s", "MFU", "days"):
        table.add_column(heading, justify="right")
    for row in rows:
        if "refused" in row:
            table.add_row(row["flags"], "refused", *[""] * 5)
            continue
        state = size(row["parameter_bytes_per_chip"] + row["optimizer_bytes_per_chip"])
        cells = [size(row["peak_bytes_per_chip"]), state]
        if row["fits"]:
            cells += [duration(row["step_seconds"]), f"{row['examples_per_second']:,.0f}"]
            cells += [f"{row['mfu']:.1%}", f"{row['days']:.2f}"]
        else:
            cells += ["does not fit", "", "", ""]
        table.add_row(row["flags"], *cells)
    rich.print(table)
    print("peak of a chip: by the compiler. The rest is estimated.")
    for row in rows:
        if "refused" in row:
            print(f"{row['flags']}: {row['refused']}")


def print_target(rows: Sequence[Figures]) -> None:
    """Prints what a grant trains of each config, and the largest whose run ends."""
    first = rows[0]
    title = f"{first['topology']} for {first['grant_days']:g} days"
    table = Table(title=escape(title), title_justify="left")
    table.add_column("config")
    for heading in ("peak", "examples/s", "whole run", "steps in the grant", "of the run"):
        table.add_column(heading, justify="right")
    for row in rows:
        name = f"{row['config']} {row['flags']}".strip()
        if not row["fits"]:
            table.add_row(name, size(row["peak_bytes_per_chip"]), "does not fit", "", "", "")
            continue
        table.add_row(
            name,
            size(row["peak_bytes_per_chip"]),
            f"{row['examples_per_second']:,.0f}",
            days(row["days"]),
            f"{row['steps_in_grant']:,.0f}",
            f"{row['share_of_run']:.0%}",
        )
    rich.print(table)
    ending = [row for row in rows if row["fits"] and row["share_of_run"] >= 1]
    if ending:
        last = ending[-1]
        print(
            f"{last['config']} is the last of them whose {last['num_steps']:,} steps end in "
            f"{first['grant_days']:g} days by this estimate; {last['steps_in_grant']:,.0f} would."
        )
    else:
        print(f"None of them ends its run in {first['grant_days']:g} days.")
    print("Times are estimated from the compiler's schedule: leave room for what it leaves out.")


def print_growth(rows: Sequence[dict[str, Any]], name: str) -> None:
    """Prints what a config needs on other numbers of chips, from `rehearse.grown`."""
    title = f"{name} on other numbers of chips, each with its rows of above: all estimated"
    table = Table(title=escape(title), title_justify="left")
    table.add_column("what")
    for row in rows:
        table.add_column(f"{row['chips']:,} chips", justify="right")

    def line(what: str, key: str, show: Callable[[Any], str]) -> None:
        table.add_row(what, *[show(row[key]) for row in rows])

    line("slices", "on", str)
    line("hosts", "hosts", "{:,}".format)
    line("step", "step_seconds", duration)
    line("  efficiency", "efficiency", "{:.1%}".format)
    line("  a chip sends to other slices", "between_slices_bytes", size)
    line("examples/s", "examples_per_second", "{:,.0f}".format)
    line("loader of a host, examples/s", "loader_examples_per_second_per_host", "{:,.0f}".format)
    line("  cores for it", "host_cores", "{:.1f}".format)
    line("reads from the bucket, 1/s", "bucket_reads_per_second", "{:,.0f}".format)
    line("  bytes, 1/s", "bucket_bytes_per_second", size)
    line("checkpoint", "checkpoint_bytes", size)
    line("  written in", "checkpoint_seconds", duration)
    line("  every", "seconds_between_checkpoints", duration)
    line("a host fails every", "seconds_between_failures", duration)
    line("goodput", "goodput", "{:.1%}".format)
    rich.print(table)
