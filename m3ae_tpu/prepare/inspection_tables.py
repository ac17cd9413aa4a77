"""Tables and messages of `inspect_data`: checked shards, a manifest, the mixture of a run."""

import pathlib
from collections.abc import Sequence
from typing import Any

import rich
import rich.progress
import rich.table
from rich.markup import escape

from m3ae_tpu.data.manifest import read_manifest
from m3ae_tpu.data.sources import OpenData
from m3ae_tpu.errors import UserError
from m3ae_tpu.files import printable
from m3ae_tpu.prepare.inspection import find_faults, summarise


def verify_sets(folders: Sequence[pathlib.Path]) -> None:
    """Compares every shard of every folder with its manifest.

    Raises:
        UserError: names the first shards that are missing or differ.
    """
    for folder in folders:
        manifest = read_manifest(folder)
        total = len(manifest["shards"])
        columns = rich.progress.Progress.get_default_columns()
        with rich.progress.Progress(*columns, transient=True) as bars:
            task = bars.add_task(f"reading {folder}", total=total)
            faults = find_faults(
                folder, manifest, lambda done, task=task: bars.update(task, completed=done)
            )
        if faults:
            more = [f"... and {len(faults) - 3} more"] if len(faults) > 3 else []
            raise UserError("\n".join([*faults[:3], *more, "Copy these shards again."]))
        print(f"{folder}: {total} of {total} shards are as the manifest says")


def show_manifest(folder: pathlib.Path, manifest: dict[str, Any]) -> None:
    """Prints a manifest as a table."""
    table = rich.table.Table(show_header=False)
    table.add_row("set", escape(printable(str(folder))))
    shards = manifest["shards"]
    size = sum(line.get("bytes", 0) for line in shards.values())
    table.add_row("shards", f"{len(shards):,}" + (f", {size / 1e6:,.1f} MB" if size else ""))
    table.add_row("records", f"{sum(line['records'] for line in shards.values()):,}")
    for name in ("kind", "given", "kept", "license"):
        if manifest.get(name):
            value = manifest[name]
            table.add_row(name, f"{value:,}" if isinstance(value, int) else escape(str(value)))
    for reason, count in sorted(manifest.get("dropped", {}).items(), key=lambda entry: -entry[1]):
        table.add_row("dropped", escape(f"{count:,}: {reason}"))
    rich.print(table)


def show_mixture(data: OpenData) -> None:
    """Prints each source's share of a batch, and the lengths of its texts."""
    batch_size = sum(source.rows for source in data.sources)
    mixture = _table(
        f"mixture: batches of {batch_size:,}",
        ("source", "kind"),
        ("rows", "records", "epochs in 1,000 steps"),
    )
    measures = ("mean", "median", "95 %", "max")
    lengths = _table(
        "tokens of a text; longer ones are truncated to text_length",
        ("source",),
        ("texts", *measures, "text_length", "truncated"),
    )
    for summary in summarise(data):
        source = summary.source
        name = escape(printable("/".join(pathlib.Path(source.config.shards).parts[-2:])))
        epochs = summary.epochs_per_thousand_steps
        mixture.add_row(
            name,
            source.kind,
            f"{source.rows:,}",
            f"{summary.records:,}",
            f"{epochs:,.3g}" if epochs < 100 else f"{epochs:,.0f}",
        )
        if summary.texts:
            figures = [f"{summary.token_lengths[measure]:,.0f}" for measure in measures]
            lengths.add_row(
                name,
                f"{summary.texts:,}",
                *figures,
                str(source.text_length),
                f"{summary.truncated:.1%}",
            )
    rich.print(mixture)
    if lengths.row_count:
        rich.print(lengths)


def _table(title: str, names: Sequence[str], figures: Sequence[str]) -> rich.table.Table:
    """Returns an empty table with columns of names, aligned left, then of figures."""
    table = rich.table.Table(title=title, title_justify="left")
    for heading in names:
        table.add_column(heading)
    for heading in figures:
        table.add_column(heading, justify="right")
    return table
