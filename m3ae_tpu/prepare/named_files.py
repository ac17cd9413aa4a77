"""Search for the file that a list names: lists come from other folders, systems and programs."""

import collections
import functools
import os
import pathlib
import re
import unicodedata
import urllib.parse
from collections.abc import Iterator

from m3ae_tpu.prepare.opening import is_remote

_NUMBER = re.compile(r"#\d+$")
"""Number of a caption behind the name, as in Flickr8k's lists."""


def find_named_file(name: str, folder: str, root: str) -> str:
    """Returns the path of the file that a list names.

    Names are relative to the list's folder. If there is no such file, the name is tried with `/`
    for `\\`, in the Unicode forms of other systems, and relative to the working folder and to the
    folders above the list whose names it holds. At last the only file below `root` whose path ends
    in the name is taken, also in other upper and lower case, and without the ending that a name
    lacks.

    Args:
        name: The name as the list has it.
        folder: The list's folder.
        root: Folder of the input.

    Raises:
        OSError: there is no such file, or several.
    """
    if is_remote(folder) or is_remote(name):
        return name if is_remote(name) else os.path.join(folder, name.strip().replace("\\", "/"))
    found = next((path for path in _candidates(name, folder) if os.path.isfile(path)), None)
    return found or _only_match(name, root)


def _candidates(name: str, folder: str) -> Iterator[str]:
    yield os.path.join(folder, name)
    forms = dict.fromkeys(
        unicodedata.normalize(form, os.path.expanduser(text))
        for text in (_plain(name), urllib.parse.unquote(_plain(name)))
        for form in ("NFC", "NFD")
    )
    for form in forms:
        yield os.path.join(folder, form)
        yield os.path.abspath(form)
        yield from _below_ancestors(form, folder)


def _plain(name: str) -> str:
    """Returns a name with `/` between folders, without spaces around it or a caption's number."""
    return _NUMBER.sub("", name.strip().removeprefix("file://")).replace("\\", "/")


def _below_ancestors(name: str, folder: str) -> Iterator[str]:
    """Yields the rest of a name behind each folder that it shares with the list's own path."""
    parts = pathlib.PurePosixPath(name).parts
    for above in (pathlib.Path(folder), *pathlib.Path(folder).parents):
        for number, part in enumerate(parts[:-1]):
            if part == above.name:
                yield str(above.joinpath(*parts[number + 1 :]))


def _only_match(name: str, root: str) -> str:
    path = _key(_plain(name)).lstrip("/").removeprefix("./")
    by_name, by_stem = _files_below(root)
    found = [
        file
        for file in by_name.get(path.rpartition("/")[2], ())
        if f"/{_key(file)}".endswith(f"/{path}")
    ] or [
        file
        for file in by_stem.get(path.rpartition("/")[2], ())
        if f"/{os.path.splitext(_key(file))[0]}".endswith(f"/{path}")
    ]
    if len(found) > 1:
        raise FileNotFoundError(f"{name!r} names several files: {found[0]}, {found[1]}")
    if not found:
        raise FileNotFoundError(f"No such file or directory: {name!r}")
    return os.path.join(root, found[0])


def _key(name: str) -> str:
    """Returns a name in the form in which names are compared."""
    return unicodedata.normalize("NFC", name).casefold()


@functools.lru_cache(maxsize=4)
def _files_below(root: str) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Returns the visible files below a folder, relative to it: by name, and by name less ending.

    Texts are left out of the second: they lie beside images of the same name.
    """
    by_name: dict[str, list[str]] = collections.defaultdict(list)
    by_stem: dict[str, list[str]] = collections.defaultdict(list)
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if name[0] != ".")
        for name in sorted(name for name in names if name[0] != "."):
            path, key = os.path.relpath(os.path.join(folder, name), root), _key(name)
            by_name[key].append(path)
            stem, ending = os.path.splitext(key)
            if ending not in (".txt", ".json", ".csv", ".npy"):
                by_stem[stem].append(path)
    return by_name, by_stem
