"""Files of a set of shards: their names, the starter set's folder, and `manifest.json`."""

import glob
import json
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from m3ae_tpu.errors import UserError, require

MANIFEST = "manifest.json"
STARTER = pathlib.Path(__file__).parent / "starter"


def locate(path: str) -> str:
    """Returns a path or glob with `starter/` and `~` replaced by the folders they stand for."""
    folder, _, rest = path.partition("/")
    return str(STARTER / rest) if folder == "starter" and rest else os.path.expanduser(path)


def resolve(pattern: str) -> list[str]:
    """Returns the files that a glob names, sorted; `starter/...` names the set in the package.

    Raises:
        UserError: no file matches, or a shard of a numbered set is missing.
    """
    path = locate(pattern)
    # The package may be installed in a folder whose name looks like a glob.
    if path.startswith(str(STARTER)):
        path = glob.escape(str(STARTER)) + path.removeprefix(str(STARTER))
    paths = sorted(path for path in glob.glob(path) if os.path.isfile(path))
    require(
        bool(paths),
        f"shards = {pattern} matches no file. Check the path (relative ones start at "
        f"{os.getcwd()}), or use 'starter/train-*', the set that ships with the package.",
    )
    _require_whole_set(pattern, paths)
    return paths


def shard_name(name: str, shard: int, num_shards: int) -> str:
    """Returns the file name of a set's shard, numbered from 0."""
    return f"{name}-{shard:05d}-of-{num_shards:05d}.array_record"


def _require_whole_set(pattern: str, paths: Sequence[str]) -> None:
    """Raises if shards of a numbered set are missing, unless the pattern names certain numbers."""
    if re.search(r"-\d|\[", os.path.basename(pattern)):
        return
    found: dict[tuple[str, str], set[int]] = {}
    for path in paths:
        numbered = re.fullmatch(r"(.*)-(\d{5})-of-(\d{5})(\..*)?", path)
        if numbered:
            found.setdefault((numbered[1], numbered[3]), set()).add(int(numbered[2]))
    for (name, total), numbers in found.items():
        missing = sorted(set(range(int(total))) - numbers)
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise UserError(
                f"shards = {pattern} lacks {name}-{missing[0]:05d}-of-{total}{more}. "
                "Copy or make it again, or name the shards to use (train-0000[0-3]-of-00008*)."
            )


def read_manifest(folder: pathlib.Path) -> dict[str, Any]:
    """Returns a set's `manifest.json`.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}). "
            "Name a folder made by pipelines.prepare_data."
        ) from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}). Copy the set again.") from None
    shards = manifest.get("shards") if isinstance(manifest, dict) else None
    require(
        isinstance(shards, dict), f"{path} lists no shards. Copy the set again, or make it again."
    )
    return manifest
