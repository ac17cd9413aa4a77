"""Shows what a set of shards holds, or what a config will feed, and checks shards against their
manifest.

    python -m pipelines.inspect_data data/cc12m --verify
    python -m pipelines.inspect_data --config=quickstart --sheet=sheet.png

Prints manifest, mixture and lengths of texts, and draws a contact sheet: examples of the first
batch, augmented, beside what the masks leave of them. Every field of the config can be set by its
dotted name, with DIR too.
"""

import os
import pathlib
from typing import TYPE_CHECKING, Any

from absl import flags

from m3ae_tpu.command_line import run_program
from m3ae_tpu.config import DataConfig, PretrainConfig
from m3ae_tpu.errors import UserError, require
from m3ae_tpu.files import atomic_path
from m3ae_tpu.overrides import load_named_config, override

if TYPE_CHECKING:
    from m3ae_tpu.data.sources import OpenData

_CONFIG = flags.DEFINE_string(
    "config", "", "Named config, or path of a file like it; instead of a DIR."
)
_VERIFY = flags.DEFINE_bool(
    "verify", False, "Only read every shard and compare it with manifest.json."
)
_SHEET = flags.DEFINE_string(
    "sheet", "contact_sheet.png", "File of the contact sheet; none if empty."
)
_EXAMPLES = flags.DEFINE_integer(
    "examples", 12, "Examples of each kind on the sheet.", lower_bound=1
)


def verify(folders: list[pathlib.Path]) -> None:
    """Checks every shard of every folder.

    Raises:
        UserError: a shard is missing or differs from its manifest; names it.
    """
    import rich.progress

    from m3ae_tpu.data.manifest import read_manifest
    from m3ae_tpu.prepare.inspection import find_faults

    for folder in folders:
        manifest = read_manifest(folder)
        total = len(manifest["shards"])
        with rich.progress.Progress(
            *rich.progress.Progress.get_default_columns(), transient=True
        ) as bars:
            task = bars.add_task(f"reading {folder}", total=total)
            faults = find_faults(
                folder, manifest, lambda done, task=task: bars.update(task, completed=done)
            )
        if faults:
            more = [f"... and {len(faults) - 3} more"] if len(faults) > 3 else []
            raise UserError("\n".join([*faults[:3], *more, "Copy these shards again."]))
        print(f"{folder}: {total} of {total} shards are as the manifest says")


def show_manifest(folder: pathlib.Path, manifest: dict[str, Any]) -> None:
    """Prints what a manifest says of its set."""
    import rich
    import rich.table

    table = rich.table.Table(show_header=False)
    table.add_row("set", str(folder))
    size = sum(line.get("bytes", 0) for line in manifest["shards"].values())
    records = sum(line["records"] for line in manifest["shards"].values())
    table.add_row(
        "shards", f"{len(manifest['shards']):,}" + (f", {size / 1e6:,.1f} MB" if size else "")
    )
    table.add_row("records", f"{records:,}")
    for name in ("kind", "given", "kept", "license"):
        if manifest.get(name):
            value = manifest[name]
            table.add_row(name, f"{value:,}" if isinstance(value, int) else str(value))
    for reason, count in sorted(manifest.get("dropped", {}).items(), key=lambda entry: -entry[1]):
        table.add_row("dropped", f"{count:,}: {reason}")
    rich.print(table)


def show_mixture(data: "OpenData", batch_size: int) -> None:
    """Prints how each source will be fed, and how long its texts are."""
    import rich
    import rich.table

    from m3ae_tpu.prepare.inspection import summarise

    mixture = rich.table.Table(title=f"mixture: batches of {batch_size:,}", title_justify="left")
    for heading in ("source", "kind", "rows", "records", "epochs in 1,000 steps"):
        mixture.add_column(heading, justify="left" if heading in ("source", "kind") else "right")
    lengths = rich.table.Table(
        title="tokens of a text; those over the length are cut", title_justify="left"
    )
    for heading in ("source", "texts", "mean", "median", "95 %", "max", "length", "cut"):
        lengths.add_column(heading, justify="left" if heading == "source" else "right")
    for summary in summarise(data):
        source = summary.source
        name = "/".join(pathlib.Path(source.shards).parts[-2:])
        epochs = f"{summary.epochs_per_thousand_steps:,.3g}"
        mixture.add_row(name, source.kind, f"{summary.rows:,}", f"{summary.records:,}", epochs)
        if summary.texts:
            figures = [
                f"{summary.token_lengths[name]:,.0f}" for name in ("mean", "median", "95 %", "max")
            ]
            lengths.add_row(
                name, f"{summary.texts:,}", *figures, str(source.text_length), f"{summary.cut:.1%}"
            )
    rich.print(mixture)
    if lengths.row_count:
        rich.print(lengths)


def draw_sheet(config: PretrainConfig, data: "OpenData", path: pathlib.Path) -> None:
    """Writes the contact sheet of the first batch."""
    from m3ae_tpu.report.contact_sheet import draw_contact_sheet

    loader = data.loader()
    batch, _ = loader.batch_at(0)
    loader.close()
    sheet = draw_contact_sheet(config, batch, data.tokenizer, examples=_EXAMPLES.value)
    with atomic_path(path) as unfinished:
        sheet.save(unfinished, "png")
    print(f"{path}: images of the first batch, augmented, beside what the masks leave of them")


def main(argv: list[str]) -> None:
    """Inspects the folder or the config that the command line names."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # Looking needs no accelerator, which a run may be holding.
    is_folder = len(argv) > 1 and not argv[1].startswith("-")
    require(
        is_folder != bool(_CONFIG.value) or "--help" in argv,
        "Name one of both: python -m pipelines.inspect_data DIR, or --config=NAME.",
    )
    sheet = pathlib.Path(_SHEET.value)
    require(
        not _SHEET.value or sheet.parent.is_dir(),
        f"--sheet = {sheet} lies in no folder. Make {sheet.parent} first, or name another file.",
    )
    require(
        not _SHEET.value or not sheet.is_dir(), f"--sheet = {sheet} is a folder. Name a file in it."
    )
    from m3ae_tpu.data.manifest import read_manifest
    from m3ae_tpu.data.sources import open_data
    from m3ae_tpu.prepare.inspection import manifest_folders, sources_of

    if is_folder:
        folders = [pathlib.Path(argv[1])]
        if _VERIFY.value:
            return verify(folders)
        sources = sources_of(folders[0], read_manifest(folders[0]))
        config = override(PretrainConfig(batch_size=96, data=DataConfig(sources=sources)), argv[2:])
    else:
        config = override(
            load_named_config(_CONFIG.value or "quickstart", PretrainConfig), argv[1:]
        )
        folders = manifest_folders(config)
        require(
            bool(folders) or not _VERIFY.value, "--verify finds no manifest.json beside the shards."
        )
        if _VERIFY.value:
            return verify(folders)
    for folder in folders:
        show_manifest(folder, read_manifest(folder))
    data = open_data(
        config.data,
        batch_size=config.batch_size,
        seed=config.seed,
        vocab_size=config.model.vocab_size,
    )
    show_mixture(data, config.batch_size)
    if _SHEET.value:
        draw_sheet(config, data, sheet)


def run() -> None:
    """Entry point of the installed command `m3ae-inspect-data`."""
    run_program(main)


if __name__ == "__main__":
    run()
