"""Makes the starter set's shards from their source form.

    python -m pipelines.make_starter_set --output=FOLDER

Reads `pairs.jsonl.gz`, `images_only.jsonl.gz`, `texts_only.jsonl.gz` and `starter_images.zip`.
Writes the shards `train-*` (3,894 pairs), `heldout-*` (973 pairs), `images-*` (300) and `texts-*`
(10,672), `manifest.json` (number of records and SHA-256 of each) and `ATTRIBUTION.md`. Images keep
their WebP bytes. The same source gives the same files. It takes some seconds and needs no network.
"""

import pathlib

from m3ae_tpu.command_line import run_program
from m3ae_tpu.data.manifest import STARTER
from m3ae_tpu.errors import UserError
from m3ae_tpu.option_flags import define_flag

_SOURCE = define_flag(
    "source", pathlib.Path, None, "Folder of the source form; by default the package's."
)
_OUTPUT = define_flag(
    "output", pathlib.Path, None, "Folder of the set, made if missing.", required=True
)
_OVERWRITE = define_flag("overwrite", bool, False, "Replace a set that is already there.")


def main(argv: list[str]) -> None:
    """Makes the set that the flags ask for and prints the number of records of each shard set."""
    if len(argv) > 1:
        raise UserError(f"argument {argv[1]!r} belongs to no flag. See --help.")
    from m3ae_tpu.prepare.starter_set import make_starter_set

    manifest = make_starter_set(
        _SOURCE.value or STARTER / "source", _OUTPUT.value, overwrite=_OVERWRITE.value
    )
    print(
        f"{_OUTPUT.value}: " + ", ".join(f"{n:,} {name}" for name, n in manifest["records"].items())
    )


def run() -> None:
    """Entry point of the installed command `m3ae-make-starter-set`."""
    run_program(main)


if __name__ == "__main__":
    run()
