"""Files that are whole or not there, and their digests. Imports nothing but the standard library."""

import contextlib
import hashlib
import os
import pathlib
from collections.abc import Iterator


@contextlib.contextmanager
def atomic_path(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields where to write instead; at the end that file becomes `path`. A kill leaves the old one
    or the new one.

    An error leaves nothing of the new one, which may be what fills the disk.
    """
    # A leading dot keeps an unfinished file out of every glob.
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        yield unfinished
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    os.replace(unfinished, path)


def atomic_write(path: pathlib.Path, content: bytes | str) -> None:
    """Writes a file in one piece. Text is UTF-8."""
    with atomic_path(path) as unfinished:
        unfinished.write_bytes(content.encode() if isinstance(content, str) else content)


def file_sha256(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
