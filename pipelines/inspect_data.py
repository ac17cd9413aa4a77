"""Shows a set of shards or the data of a config, and checks shards against their manifest.

    python -m pipelines.inspect_data data/cc12m --verify
    python -m pipelines.inspect_data --config=quickstart --sheet=sheet.png

Prints the manifest, the mixture and the lengths of texts. `--sheet` draws a contact sheet too:
examples of the first batch, augmented, beside the patches and words that the masks leave. Fields of
the config can be set by their dotted names, also for a folder.
"""

import os
import pathlib
from typing import TYPE_CHECKING

from m3ae_tpu.command_line import run_program
from m3ae_tpu.config import DataConfig, PretrainConfig
from m3ae_tpu.errors import require
from m3ae_tpu.files import atomic_path, local_path, require_writable_file
from m3ae_tpu.option_flags import define_flag
from m3ae_tpu.overrides import load_named_config, override

if TYPE_CHECKING:
    from m3ae_tpu.data.sources import OpenData

_CONFIG = define_flag(
    "config", str, "", "Named config, or path of a file like it, instead of a folder."
)
_VERIFY = define_flag(
    "verify", bool, False, "Only read every shard and compare it with manifest.json."
)
_SHEET = define_flag(
    "sheet", pathlib.Path, None, "File to draw a contact sheet to; replaced if it exists."
)
_EXAMPLES = define_flag("examples", int, 12, "Examples of each kind on the sheet.", at_least=1)


def main(argv: list[str]) -> None:
    """Inspects the folder or the config that the command line names."""
    os.environ["JAX_PLATFORMS"] = "cpu"  # The accelerator may be busy with a run.
    is_folder = len(argv) > 1 and not argv[1].startswith("-")
    require(
        is_folder != bool(_CONFIG.value) or "--help" in argv,
        "Name either a folder, before other arguments, or a config: "
        "python -m pipelines.inspect_data DIR, or --config=NAME.",
    )
    if _SHEET.value and not _VERIFY.value:
        require_writable_file("--sheet", _SHEET.value)
    from m3ae_tpu.data.manifest import read_manifest
    from m3ae_tpu.data.sources import open_data
    from m3ae_tpu.prepare.inspection import manifest_folders, sources_of
    from m3ae_tpu.prepare.inspection_tables import show_manifest, show_mixture, verify_sets

    if is_folder:
        folders = [local_path("DIR", argv[1])]
        if _VERIFY.value:
            return verify_sets(folders)
        sources = sources_of(folders[0], read_manifest(folders[0]))
        config = override(PretrainConfig(batch_size=96, data=DataConfig(sources=sources)), argv[2:])
    else:
        config = override(
            load_named_config(_CONFIG.value or "quickstart", PretrainConfig), argv[1:]
        )
        folders = manifest_folders(config.data)
        require(
            bool(folders) or not _VERIFY.value, "--verify finds no manifest.json beside the shards."
        )
        if _VERIFY.value:
            return verify_sets(folders)
    for folder in folders:
        show_manifest(folder, read_manifest(folder))
    data = open_data(
        config.data,
        batch_size=config.batch_size,
        seed=config.seed,
        vocab_size=config.model.vocab_size,
    )
    show_mixture(data)
    if _SHEET.value:
        _draw_sheet(config, data, _SHEET.value)


def _draw_sheet(config: PretrainConfig, data: "OpenData", path: pathlib.Path) -> None:
    """Writes the contact sheet of the first batch."""
    from m3ae_tpu.report.contact_sheet import draw_contact_sheet

    loader = data.loader()
    batch, _ = loader.batch_at(0)
    loader.close()
    sheet = draw_contact_sheet(
        batch,
        data.tokenizer,
        seed=config.seed,
        masking=config.masking,
        patch_size=config.model.patch_size,
        num_examples=_EXAMPLES.value,
    )
    with atomic_path(path) as unfinished:
        sheet.save(unfinished, "png")
    print(f"{path}: images of the first batch, augmented, beside what the masks leave of them")


def run() -> None:
    """Entry point of the installed command `m3ae-inspect-data`."""
    run_program(main)


if __name__ == "__main__":
    run()
