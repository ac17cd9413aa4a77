"""Pieces of a collection: units of work small enough to repeat, each of one format."""

import dataclasses
import functools
import glob
import itertools
import json
import os
from collections.abc import Iterator, Mapping

from m3ae_tpu.errors import UserError, require
from m3ae_tpu.files import home_expanded
from m3ae_tpu.prepare.formats import Format, unread_file
from m3ae_tpu.prepare.inputs import Input, look_at_input
from m3ae_tpu.prepare.opening import is_remote
from m3ae_tpu.prepare.readers.archives import read_tar
from m3ae_tpu.prepare.readers.hdf5 import read_hdf5
from m3ae_tpu.prepare.readers.image_files import names_beside, read_image_files
from m3ae_tpu.prepare.readers.layouts import Layout
from m3ae_tpu.prepare.readers.parquet import parquet_row_groups, read_parquet
from m3ae_tpu.prepare.readers.tables import read_table, table_spans
from m3ae_tpu.prepare.roles import Role
from m3ae_tpu.prepare.samples import Fault, Sample

IMAGES_PER_PIECE = 1_000
TEXTS_PER_PIECE = 100_000


@dataclasses.dataclass(frozen=True)
class Piece:
    """Files that are read one after the other, or a range of one file."""

    format: Format
    urls: tuple[str, ...]
    sizes: tuple[int, ...]
    """Bytes of each file. A file of another size makes another piece."""
    texts_beside: tuple[tuple[str, int], ...] = ()
    """Texts beside loose images, and the bytes of each, which count likewise."""
    start: int = 0
    """Start of the range: a row of HDF5, a row group of parquet, a byte of a table."""
    stop: int | None = None
    """End of the range; None is the end of the file."""
    first_row: int = 0
    """Number of a table's row at `start`."""
    prefix: str = ""
    """Start of the names of HDF5 arrays."""
    layout: Layout | None = None
    """Layout of a table."""
    root: str = ""
    """Folder of the input, where files are searched that a list names."""
    with_images: bool = True
    """False for texts, whose rows may name files that are not needed."""

    def samples(self) -> Iterator[Sample]:
        """Yields the samples of the piece, in order."""
        url = self.urls[0]
        match self.format:
            case "image":
                return read_image_files(self.urls)
            case "tar":
                return read_tar(url)
            case "parquet":
                return read_parquet(
                    url, self.start, self.stop, root=self.root, with_images=self.with_images
                )
            case "hdf5":
                return read_hdf5(url, self.prefix, self.start, self.stop)
            case "table":
                assert self.layout is not None
                return read_table(
                    url,
                    self.layout,
                    self.start,
                    self.stop,
                    self.first_row,
                    root=self.root,
                    with_images=self.with_images,
                )
            case "unread" | "unknown":
                return iter([Sample(place=url, fault=Fault(*unread_file(url)))])

    def key(self) -> str:
        """Returns a text that identifies the piece: equal pieces of equal files have equal ones."""
        return json.dumps(dataclasses.astuple(self))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Collection:
    """Input of a preparation: its pieces, and the files that are not read."""

    pieces: tuple[Piece, ...]
    """Units of work, in the order of the input."""
    passed_over: Mapping[str, tuple[int, str]]
    """Bytes of each file that is not read, such as a README, and the reason."""

    def count_files(self) -> dict[str, dict[str, int]]:
        """Returns numbers and bytes of files by format, for the manifest.

        Files that are not read count as `passed over`.
        """
        sizes: dict[str, dict[str, int]] = {}
        for piece in self.pieces:
            files = zip(piece.urls, piece.sizes, strict=True)
            sizes.setdefault(piece.format, {}).update(files)
        if self.passed_over:
            sizes["passed over"] = {url: size for url, (size, _) in self.passed_over.items()}
        return {
            format: {"files": len(files), "bytes": sum(files.values())}
            for format, files in sorted(sizes.items())
        }


def find_pieces(inputs: list[str], kind: str) -> Collection:
    """Lists the pieces of files and folders, local or remote; `look_at_input` chooses the files.

    `FILE#train` selects the arrays `train_jpg` and so on of an HDF5 file. Globs may be given too.

    Raises:
        UserError: an input does not exist, holds nothing to read, or holds addresses instead of
            images.
    """
    require(bool(inputs), "--input is empty. Name files or folders.")
    pieces: list[Piece] = []
    passed_over: dict[str, tuple[int, str]] = {}
    prefixes: dict[str, set[str]] = {}
    for given in itertools.chain.from_iterable(map(_matches, inputs)):
        path, prefix = _split_prefix(given)
        found = look_at_input(path, kind)
        twice = [
            url
            for url in found.sizes
            if url in prefixes and (not prefix or {prefix, ""} & prefixes[url])
        ]
        require(
            not twice,
            f"--input = {path} names {min(twice, default='')} a second time. Name each file once.",
        )
        for url in found.sizes:
            prefixes.setdefault(url, set()).add(prefix)
        pieces += _pieces_of(found, prefix, kind)
        passed_over |= {url: (found.sizes[url], why) for url, why in found.passed_over.items()}
    read = {url for piece in pieces for url in piece.urls}
    return Collection(
        pieces=tuple(pieces),
        passed_over={url: known for url, known in passed_over.items() if url not in read},
    )


def _matches(given: str) -> list[str]:
    """Returns the paths that a glob names, sorted; another input as it is."""
    is_pattern = glob.has_magic(given) and not is_remote(given) and not os.path.exists(given)
    return (is_pattern and sorted(glob.glob(home_expanded(given)))) or [given]


def _split_prefix(given: str) -> tuple[str, str]:
    """Splits `FILE#train` into file and prefix of the arrays."""
    path, mark, prefix = given.rpartition("#")
    return (path, f"{prefix}_") if mark and not os.path.exists(given) else (given, "")


def _pieces_of(found: Input, prefix: str, kind: str) -> Iterator[Piece]:
    for url in found.read:
        role, format = found.roles[url], found.formats[url]
        whole = Piece(
            format if role.use != "unknown" else "unknown",
            (url,),
            (found.sizes[url],),
            prefix=prefix,
            layout=role.layout,
            root=found.root if role.use == "list" else "",
            with_images=kind != "text",
        )
        yield from _split(whole, role, TEXTS_PER_PIECE if kind == "text" else IMAGES_PER_PIECE)
    for start in range(0, len(found.images), IMAGES_PER_PIECE):
        urls = tuple(found.images[start : start + IMAGES_PER_PIECE])
        beside = (name for url in urls for name in names_beside(url) if name in found.sizes)
        yield Piece(
            "image",
            urls,
            tuple(found.sizes[url] for url in urls),
            tuple((name, found.sizes[name]) for name in beside),
        )


def _split(whole: Piece, role: Role, num_rows: int) -> list[Piece]:
    """Splits a file of many rows into pieces that are each worth a process.

    Args:
        whole: The file as one piece.
        role: Its role.
        num_rows: Rows of a piece.
    """
    url, piece = whole.urls[0], functools.partial(dataclasses.replace, whole)
    if whole.format == "table" and whole.layout is not None:
        return [
            piece(start=start, stop=stop, first_row=row)
            for start, stop, row in table_spans(url, whole.layout, num_rows)
        ]
    if whole.format == "parquet":
        starts, rows = [0], 0
        for group, count in enumerate(parquet_row_groups(url)):
            if rows >= num_rows:
                starts.append(group)
                rows = 0
            rows += count
        return [piece(start=a, stop=b) for a, b in zip(starts, [*starts[1:], None], strict=True)]
    if whole.format == "hdf5":
        counts = role.row_counts
        prefix = whole.prefix if whole.prefix or len(counts) != 1 else next(iter(counts))
        if counts and prefix not in counts:
            names = ", ".join(f"{url}#{name.rstrip('_')}" for name in counts if name)
            fault = (
                f"has no set {whole.prefix.rstrip('_')}" if whole.prefix else "holds several sets"
            )
            raise UserError(f"--input = {url} {fault}. Name one: {names}.")
        starts = range(0, max(1, counts.get(prefix, 0)), 2 * num_rows)
        return [
            piece(
                prefix=prefix,
                start=start,
                stop=None if start == starts[-1] else start + starts.step,
            )
            for start in starts
        ]
    return [whole]
