"""Files: paths as users type them and read them, checks before work, atomic writes, and digests.

Imports neither JAX nor NumPy.
"""

import contextlib
import hashlib
import os
import pathlib
import re
import tokenize
import zipfile
import zlib
from collections.abc import Iterator

from m3ae_tpu.errors import UserError, require

REMOTE = "gs://"
"""Beginning of the address of a file or folder in a bucket of Google Cloud Storage."""

DAMAGED_ARRAY = (
    *(ValueError, EOFError, KeyError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error, tokenize.TokenError),
)
"""Errors of `numpy.load` over files that are damaged, encrypted, or none of its own."""

type Place = pathlib.Path | str
"""Path of a local file or folder, or address of one in a bucket."""


def is_remote(place: str | os.PathLike[str]) -> bool:
    """Returns whether a place lies in a bucket."""
    return os.fspath(place).startswith(REMOTE)


def place(name: str, text: str) -> Place:
    """Returns the path or address of a file or folder that a user named.

    Args:
        name: The flag or argument, for messages.
        text: The path or address as typed.

    Raises:
        UserError: it is a path that cannot be used, or an address of another storage.
    """
    if not is_remote(text):
        return local_path(name, text)
    address = text.rstrip("/")
    require(
        is_remote(address),
        f"{name} = {text} does not name a bucket. Write {REMOTE}BUCKET/FOLDER.",
    )
    return address


def home_expanded(path: str) -> str:
    """Returns a path with `~` or `~NAME` at its start replaced by the home folder.

    Raises:
        UserError: the user has no home folder.
    """
    expanded = os.path.expanduser(path)
    require(
        expanded != "~" and not expanded.startswith("~/"),
        f"{path} is in the home folder, but this user has none. Write the whole path, or set HOME.",
    )
    return expanded


def local_path(name: str, text: str) -> pathlib.Path:
    """Returns the path of a file or folder that a user named.

    Args:
        name: The flag or argument, for messages.
        text: The path as typed.

    Raises:
        UserError: the user has no home folder; the path is not UTF-8: the libraries for
            checkpoints and shards take no other; or it is an address on another machine.
    """
    require(
        not re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text),
        f"{name} = {text} is not on this machine. Name a local path"
        f"{'' if is_remote(text) else f', or, where buckets are taken, one at {REMOTE}'}.",
    )
    path = pathlib.Path(home_expanded(text))
    require(
        is_unicode(os.path.abspath(path)),
        f"{name} = {text} is not UTF-8, or lies in such a folder. Rename it, or name another.",
    )
    return path


def is_unicode(text: str) -> bool:
    """Returns whether a text can be written as UTF-8, unlike one that holds undecoded bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(line: str) -> str:
    """Returns a line for a terminal: what no terminal shows becomes escapes.

    Names of files may hold control characters, and bytes that are not UTF-8.
    """
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1] for character in line
    )


def require_writable_file(
    name: str,
    path: pathlib.Path,
    *,
    fix: str = "Name a file in a folder that you may write to.",
) -> None:
    """Refuses a path at which `atomic_path` could write no file. Called before the work.

    Args:
        name: The flag, for messages.
        path: The file to be written.
        fix: Advice where it may not be written.

    Raises:
        UserError: it is a folder, lies in none, or may not be written.
    """
    try:
        require(not path.is_dir(), f"{name} = {path} is a folder. Name a file in it.")
        require(
            path.parent.is_dir(),
            f"{name} = {path} is in a folder that does not exist. "
            f"Make {path.parent}, or name another file.",
        )
        unfinished = _unfinished(path)
        unfinished.touch()
        unfinished.unlink()
    except OSError as error:
        raise UserError(f"{name} = {path} cannot be written ({error.strerror}). {fix}") from None


def _unfinished(path: pathlib.Path) -> pathlib.Path:
    """Returns the temporary path of a file; globs do not match its leading dot."""
    return path.with_name(f".{path.name}.unfinished")


@contextlib.contextmanager
def atomic_path(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a temporary path to write to, which is renamed to `path` at the end.

    A kill leaves either the old file or the new one. An error removes the temporary file, which may
    be what fills the disk.
    """
    unfinished = _unfinished(path)
    try:
        yield unfinished
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    os.replace(unfinished, path)


def atomic_write(path: pathlib.Path, content: bytes | str) -> None:
    """Writes a file atomically. Text is UTF-8, with escapes for other bytes of names."""
    if isinstance(content, str):
        content = content.encode(errors="backslashreplace")
    with atomic_path(path) as unfinished:
        unfinished.write_bytes(content)


def file_sha256(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
