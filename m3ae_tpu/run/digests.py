"""SHA-256 digests: of a checkpoint's files, to find damage, and of its arrays, to compare runs.

Orbax restores array data with flipped bits silently, so each step carries the digests of its files.
"""

import hashlib
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from m3ae_tpu.files import file_sha256

FILE_NAME = "digests.json"


def write_digests(folder: pathlib.Path, items: Iterable[str]) -> None:
    """Writes size and SHA-256 of every file in the subfolders `items` to `FILE_NAME` in `folder`.

    Called before `folder` is renamed to its final name: files and digests appear at once.
    """
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
        for item in items
        for path in sorted((folder / item).rglob("*"))
        if path.is_file()
    }
    (folder / FILE_NAME).write_text(json.dumps(files, indent=1))


def find_damage(folder: pathlib.Path) -> str:
    """Returns the first file that differs from its digest and how, or "" if all agree."""
    try:
        files = json.loads((folder / FILE_NAME).read_bytes())
        expected = {name: (entry["bytes"], entry["sha256"]) for name, entry in files.items()}
    except FileNotFoundError:
        return f"{folder / FILE_NAME} is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{folder / FILE_NAME} is not a list of digests"
    for name, (num_bytes, sha256) in expected.items():
        path = folder / name
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != num_bytes:
            return f"{path} has {path.stat().st_size} bytes, {num_bytes} were written"
        if file_sha256(path) != sha256:
            return f"{path} has another SHA-256 than when it was written"
    return ""


def arrays_sha256(arrays: Mapping[str, np.ndarray]) -> str:
    """Returns a digest of names, dtypes, shapes and bits; order and sharding do not count."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(f"{name} {array.dtype.name} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def json_sha256(value: Any) -> str:
    """Returns a digest of a JSON value; the order of keys does not count."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
