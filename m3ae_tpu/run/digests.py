"""Digests: of a checkpoint's files, to find damage, and of its arrays, to compare runs.

Orbax restores array data with flipped bits silently, so each step carries the digests of its files.
"""

import abc
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

FILE_NAME = "digests.json"


class StoredFile(abc.ABC):
    """A file or object whose digest can be told."""

    num_bytes: int

    @abc.abstractmethod
    def digest(self, algorithm: str) -> str:
        """Returns the hexadecimal digest by `sha256` or `md5`."""


def list_of_digests(files: Mapping[str, StoredFile], algorithm: str) -> bytes:
    """Returns the content of `FILE_NAME`: size and digest of each file."""
    listed = {
        name: {"bytes": file.num_bytes, algorithm: file.digest(algorithm)}
        for name, file in files.items()
    }
    return json.dumps(listed, indent=1).encode()


def find_damage(files: Mapping[str, StoredFile], read: Callable[[str], bytes], folder: str) -> str:
    """Returns the first file that differs from its digest and how, or "" if all agree.

    Args:
        files: The files that are there, by their path in a folder.
        read: Returns the content of one of them.
        folder: The folder's name, for messages.
    """
    try:
        listed = json.loads(read(FILE_NAME))
        expected = {name: _sum_of(entry) for name, entry in listed.items()}
    except FileNotFoundError:
        return f"{folder}/{FILE_NAME} is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{folder}/{FILE_NAME} is not a list of digests"
    for name, (num_bytes, algorithm, digest) in expected.items():
        path, file = f"{folder}/{name}", files.get(name)
        if file is None:
            return f"{path} is missing"
        if file.num_bytes != num_bytes:
            return f"{path} has {file.num_bytes} bytes, {num_bytes} were written"
        if file.digest(algorithm) != digest:
            return f"{path} has another {_NAMES[algorithm]} than when it was written"
    return ""


_NAMES = {"sha256": "SHA-256", "md5": "MD5"}


def _sum_of(entry: Mapping[str, Any]) -> tuple[int, str, str]:
    """Returns size, algorithm and digest in a file's entry.

    Raises:
        KeyError: it has none of them.
    """
    algorithm = next((name for name in _NAMES if name in entry), "sha256")
    return entry["bytes"], algorithm, entry[algorithm]


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
