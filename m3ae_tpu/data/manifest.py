"""Files of a set of shards: their names, the starter set's folder, and `manifest.json`."""

import fnmatch
import glob
import json
import os
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from m3ae_tpu.errors import UserError, require
from m3ae_tpu.files import Place, home_expanded, is_remote, is_unicode
from m3ae_tpu.storage.folder import matching_objects
from m3ae_tpu.storage.places import read_bytes

MANIFEST = "manifest.json"
STARTER = pathlib.Path(__file__).parent / "starter"


def locate(path: str) -> str:
    """Returns a path or glob with `starter/` and `~` replaced by the folders they stand for."""
    folder, _, rest = path.partition("/")
    return str(STARTER / rest) if folder == "starter" and rest else home_expanded(path)


def resolve(pattern: str) -> list[str]:
    """Returns the files or objects that a glob names, sorted; `starter/...` names the package's.

    Raises:
        UserError: no file matches, or a shard of a numbered set is missing.
    """
    if is_remote(pattern):
        path_glob, paths = pattern, list(matching_objects(pattern))
        require(bool(paths), f"shards = {pattern} matches no object. Check the address.")
    else:
        path_glob = _as_glob(locate(pattern))
        paths = sorted(path for path in glob.glob(path_glob) if os.path.isfile(path))
    require(
        bool(paths),
        f"shards = {pattern} matches no file that you may read. Check the path (relative ones "
        f"start at {os.getcwd()}), or use 'starter/train-*', the set that ships with the package.",
    )
    for path in paths:  # ArrayRecord opens no other names.
        require(is_unicode(path), f"shards = {path} is not UTF-8. Rename file and folders.")
    _require_whole_set(pattern, os.path.basename(path_glob), paths)
    return paths


def _as_glob(path: str) -> str:
    """Returns a glob of a path whose file or folder may have a name that looks like a glob."""
    if os.path.isfile(path):
        return glob.escape(path)
    folder, name = os.path.split(path)
    return os.path.join(glob.escape(folder), name) if os.path.isdir(folder) else path


def shard_name(name: str, shard: int, num_shards: int) -> str:
    """Returns the file name of a set's shard, numbered from 0."""
    return f"{name}-{shard:05d}-of-{num_shards:05d}.array_record"


def _require_whole_set(pattern: str, name_glob: str, paths: Sequence[str]) -> None:
    """Raises if a shard of a numbered set is missing whose name the glob matches."""
    found: dict[tuple[str, ...], set[int]] = {}
    for path in paths:
        numbered = re.fullmatch(r"(.*)-(\d{5,})-of-(\d{5,})(\.[^/]*)?", path, re.DOTALL)
        if numbered:
            name, number, total, suffix = numbered.groups(default="")
            found.setdefault((name, total, suffix), set()).add(int(number))
    for (name, total, suffix), numbers in found.items():
        others = sorted(set(range(int(total))) - numbers)
        names = [f"{name}-{number:0{len(total)}d}-of-{total}{suffix}" for number in others]
        missing = [name for name in names if fnmatch.fnmatchcase(os.path.basename(name), name_glob)]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise UserError(
                f"shards = {pattern} lacks {missing[0]}{more}. "
                "Copy or make it again, or name the shards to use (train-0000[0-3]-of-00008*)."
            )


def read_manifest(folder: Place) -> dict[str, Any]:
    """Returns the `manifest.json` of a set, on a disk or in a bucket.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    path = f"{folder}/{MANIFEST}"
    try:
        manifest = json.loads(read_bytes(path).decode())
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
