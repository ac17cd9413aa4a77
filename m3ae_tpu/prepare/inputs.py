"""Files of an input, and the choice of those that are read."""

import concurrent.futures
import contextlib
import dataclasses
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence

from m3ae_tpu.errors import UserError
from m3ae_tpu.files import home_expanded
from m3ae_tpu.prepare.formats import Format, file_format, unread_file
from m3ae_tpu.prepare.helper_files import DOCUMENT, helper_file_reason
from m3ae_tpu.prepare.named_files import find_named_file
from m3ae_tpu.prepare.opening import UNREADABLE, file_system, is_remote
from m3ae_tpu.prepare.readers.image_files import SIDECAR_ENDINGS
from m3ae_tpu.prepare.readers.parquet import parquet_names
from m3ae_tpu.prepare.readers.tables import table_rows
from m3ae_tpu.prepare.roles import Role, file_name, find_role
from m3ae_tpu.prepare.samples import is_address, is_image_name

_OPENED_AT_ONCE = 32
"""Files that are opened at the same time to look at them: a remote store answers slowly."""
_TEXT_ENDINGS = ("txt", "json", "jsonl", "csv", "tsv", "md")
_ROW_ENDINGS = ("tar", "parquet", "hdf5", "h5")
"""Endings of files of rows: a file so named is missed if it holds something else."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Input:
    """A file or folder that is given, and what its files are for."""

    root: str
    """The folder, or that of the file."""
    sizes: Mapping[str, int]
    """Bytes of each file."""
    formats: Mapping[str, Format]
    """Format of each file's content."""
    roles: Mapping[str, Role]
    """Role of each file."""
    read: Sequence[str]
    """Files of rows, lists and texts that are read."""
    images: Sequence[str]
    """Loose files that are read as images."""
    passed_over: Mapping[str, str]
    """Reason why each of the other files is not read."""


def look_at_input(given: str, kind: str) -> Input:
    """Lists the files of an input, recognises them by content, and chooses those that are read.

    Files of rows (tars, parquet, HDF5) and lists of images are always read. If a list names files
    of the input, only those loose images are read that lists name; without one all of them are, and
    each file that is neither an image nor a text counts as one, to be dropped with its reason. For
    texts, plain text and tables are read too, but not beside tars.

    Args:
        given: File or folder, local or remote.
        kind: Kind of the samples.

    Raises:
        UserError: it does not exist or cannot be read, or holds nothing of the kind.
    """
    sizes = list_files(given)
    root = given if is_remote(given) else os.path.abspath(home_expanded(given))
    is_folder = root not in sizes
    root = root if is_folder else os.path.dirname(root)
    formats = _find_formats(sizes)
    roles = _find_roles(formats, kind, root, is_folder=is_folder)
    read, loose = _choose_texts(formats, roles) if kind == "text" else _choose_images(roles)
    if not read:
        raise UserError(_nothing_message(given, roles, kind))
    named = set() if kind == "text" else set(_named_files(read, formats, roles, root))
    stems = _stems({*read, *named})
    passed_over = {
        url: _reason(url, roles[url])
        for url in sizes
        if url not in read
        and url not in named
        and not (_is_sidecar(url) and os.path.splitext(url)[0] in stems)
    }
    return Input(
        root=root,
        sizes=sizes,
        formats=formats,
        roles=roles,
        read=[url for url in sizes if url in read and url not in loose],
        images=sorted(loose),
        passed_over=passed_over,
    )


def _reason(url: str, role: Role) -> str:
    """Returns why a file is passed over."""
    if role.use == "image":
        return "no list names it"
    return role.reason or unread_file(url).reason


def list_files(given: str) -> dict[str, int]:
    """Returns the sizes of a file, or of all files below a folder that are not hidden, sorted.

    Raises:
        UserError: there is none, or a folder cannot be read.
    """
    if is_remote(given):
        system, root = file_system(given)
        found = system.find(root, detail=True)
        sizes = {
            str(system.unstrip_protocol(name)): int(found[name].get("size") or 0)
            for name in sorted(found)
            if not any(folder.startswith(".") for folder in name[len(root) :].split("/"))
        }
    else:
        path = os.path.abspath(home_expanded(given))
        try:
            sizes = {path: os.stat(path).st_size}
        except OSError as error:
            hint = " Put a path that holds a comma in double quotes." if "," in given else ""
            raise UserError(
                f"--input = {given} cannot be read ({error.strerror}). Check the path.{hint}"
            ) from None
        if os.path.isdir(path):
            sizes = dict(sorted(_local_files(path, ())))
    if not sizes:
        raise UserError(f"--input = {given} does not exist or is an empty folder. Check the path.")
    return sizes


def _local_files(folder: str, above: tuple[str, ...]) -> Iterator[tuple[str, int]]:
    """Yields files below a folder and their sizes.

    Links are followed, but not to one of the folders above.
    """
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        entries = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except OSError as error:
        raise UserError(
            f"--input holds {folder}, which cannot be read ({error.strerror}). "
            "Make it readable, or move it away."
        ) from None
    for entry in entries:
        try:
            status = entry.stat()
        except OSError:  # A link to nothing or to itself: reading says so of this file alone.
            yield entry.path, 0
            continue
        if stat.S_ISDIR(status.st_mode):
            yield from _local_files(entry.path, (*above, real))
        elif stat.S_ISREG(status.st_mode):  # A pipe would be waited for.
            yield entry.path, status.st_size


def _find_formats(sizes: Mapping[str, int]) -> dict[str, Format]:
    with concurrent.futures.ThreadPoolExecutor(_OPENED_AT_ONCE) as threads:
        formats = dict(zip(sizes, threads.map(file_format, sizes), strict=True))
    # An empty file has no content to recognise.
    empty_texts: dict[str, Format] = {
        url: "table" for url, size in sizes.items() if not size and _ending(url) in _TEXT_ENDINGS
    }
    return formats | empty_texts


def _find_roles(
    formats: Mapping[str, Format], kind: str, root: str, *, is_folder: bool
) -> dict[str, Role]:
    helpers, sidecars = {}, {}
    if is_folder:
        reasons = {url: helper_file_reason(url[len(root) :].lstrip("/")) for url in formats}
        helpers = {
            url: Role(use="none", reason=reason)
            for url, reason in reasons.items()
            if reason and formats[url] != "image"
        }
    if kind != "text":
        stems = _stems(
            url for url, format in formats.items() if format == "image" or is_image_name(url)
        )
        sidecars = {
            url: Role(use="none", reason="text of an image that is not read")
            for url, format in formats.items()
            if _is_sidecar(url) and format != "image" and os.path.splitext(url)[0] in stems
        }
    known = helpers | sidecars
    others = [url for url in formats if url not in known]
    with concurrent.futures.ThreadPoolExecutor(_OPENED_AT_ONCE) as threads:
        found = threads.map(lambda url: _find_role(url, formats[url], kind, root), others)
        return {**known, **dict(zip(others, found, strict=True))}


def _find_role(url: str, format: Format, kind: str, root: str) -> Role:
    if kind == "text" and is_image_name(url):
        return Role(use="none", reason="image")
    if format == "table" and (is_image_name(url) or _ending(url) in _ROW_ENDINGS):
        return Role(use="unknown")  # A page about an error, saved in place of the file.
    return find_role(url, format, kind, root)


def _choose_images(roles: Mapping[str, Role]) -> tuple[set[str], set[str]]:
    """Returns the files that are read for images, and those of them that are loose images."""
    uses = {url: role.use for url, role in roles.items()}
    rows = {url for url, use in uses.items() if use in ("rows", "damaged")}
    lists = {url for url, use in uses.items() if use == "list"}
    images = {url for url, use in uses.items() if use == "image"}
    unknown = {url for url, use in uses.items() if use == "unknown"}
    lists_of_input = {url for url in lists if roles[url].is_of_input}
    if lists_of_input:
        return rows | lists_of_input | {
            url for url in unknown if _ending(url) in _ROW_ENDINGS
        }, set()
    if any(uses[url] == "rows" for url in rows):
        loose = images | {url for url in unknown if is_image_name(url)}
        return rows | loose | unknown, loose
    loose = images | unknown
    return (rows | loose or lists), loose


def _choose_texts(
    formats: Mapping[str, Format], roles: Mapping[str, Role]
) -> tuple[set[str], set[str]]:
    """Returns the files that are read for texts, and an empty set: no loose images."""
    archives = {url for url in roles if formats[url] == "tar"}
    read = {url for url, role in roles.items() if role.use not in ("none", "addresses")}
    if archives:  # Texts beside archives are lists and statistics.
        read -= {url for url in roles if formats[url] == "table"}
    return read, set()


def _named_files(
    read: Iterable[str], formats: Mapping[str, Format], roles: Mapping[str, Role], root: str
) -> Iterator[str]:
    """Yields the files of the input that lists name, as far as the lists can be read."""
    for url in read:
        role = roles[url]
        if role.use != "list":
            continue
        rows = parquet_names(url) if role.layout is None else table_rows(url, role.layout)
        with contextlib.suppress(*UNREADABLE):
            for row in rows:
                name = file_name(row) if isinstance(row, Mapping) else ""
                if name and not is_address(name):
                    with contextlib.suppress(OSError, ValueError):
                        path = find_named_file(name, os.path.dirname(url), root)
                        yield path if is_remote(path) else os.path.normpath(path)


def _nothing_message(given: str, roles: Mapping[str, Role], kind: str) -> str:
    if any(role.use == "addresses" for role in roles.values()):
        return (
            f"--input = {given} holds addresses of images, not images. Download them first: "
            "img2dataset --url_list=FILE --output_format=webdataset."
        )
    reasons = [f"{os.path.basename(url)}: {role.reason}" for url, role in roles.items()]
    shown = "\n".join(
        [*reasons[:2], *([f"... and {len(reasons) - 2} more files"] * (len(reasons) > 2))]
    )
    if kind == "text":
        need = "no text to read. Give plain text, JSON lines, CSV or parquet"
    else:
        need = "no images. Give a folder of images, tars, parquet or HDF5"
    is_helper = any(role.reason == DOCUMENT for role in roles.values())
    hint = " To read a document about the data, name that file." if is_helper else ""
    return f"--input = {given} holds {need}.{hint}\n{shown}"


def _stems(images: Iterable[str]) -> set[str]:
    """Returns the names of images without and with their ending: `a.txt`, `a.jpg.txt`."""
    return {stem for url in images for stem in (os.path.splitext(url)[0], url)}


def _is_sidecar(url: str) -> bool:
    return url.endswith(SIDECAR_ENDINGS)


def _ending(url: str) -> str:
    return url.rpartition(".")[2].lower()
