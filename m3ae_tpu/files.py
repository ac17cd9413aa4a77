"""Files that are whole or not there, and their digests. Imports nothing but the standard library."""

import hashlib
import os
import pathlib


def write_whole(path: pathlib.Path, content: bytes | str) -> None:
    """Writes a file in one piece: a kill leaves the old one or the new one. Text is UTF-8."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(unfinished, path)


def file_sha256(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
