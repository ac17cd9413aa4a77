"""Atomic writes of files, and their digests. Imports only the standard library."""

import contextlib
import hashlib
import os
import pathlib
from collections.abc import Iterator


@contextlib.contextmanager
def atomic_path(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary path to write to, which is renamed to `path` at the end.

    A kill leaves either the old file or the new one. An error removes the temporary file, which may
    be what fills the disk.
    """
    # Globs do not match a leading dot.
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        yield unfinished
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    os.replace(unfinished, path)


def atomic_write(path: pathlib.Path, content: bytes | str) -> None:
    """Writes a file atomically. Text is UTF-8."""
    with atomic_path(path) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)


def file_sha256(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
