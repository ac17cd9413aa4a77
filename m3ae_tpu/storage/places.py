"""Places of files, on a disk or in a bucket, read alike."""

import os
from collections.abc import Sequence

from m3ae_tpu.files import Place, is_remote
from m3ae_tpu.storage.folder import RemoteFolder, split_address


def read_bytes(place: Place) -> bytes:
    """Returns the content of a file or object.

    Raises:
        OSError: it is missing or cannot be read.
        UserError: its bucket cannot be used.
    """
    if is_remote(place):
        folder, name = split_address(os.fspath(place))
        return RemoteFolder(folder).read(name)
    with open(place, "rb") as file:
        return file.read()


def num_bytes(place: Place) -> int:
    """Returns the size of a file or object. Raises like `read_bytes`."""
    if is_remote(place):
        folder, name = split_address(os.fspath(place))
        return RemoteFolder(folder).stat(name).num_bytes
    return os.path.getsize(place)


def read_parts(place: Place, parts: Sequence[tuple[int, int]]) -> bytes:
    """Returns parts of a file or object, one behind the other. Raises like `read_bytes`.

    Args:
        place: The file or object.
        parts: First byte and number of bytes of each.
    """
    if is_remote(place):
        folder, name = split_address(os.fspath(place))
        objects = RemoteFolder(folder)
        return b"".join(objects.read(name, start, count) for start, count in parts)
    content = []
    with open(place, "rb") as file:
        for start, count in parts:
            file.seek(start)
            content.append(file.read(count))
    return b"".join(content)
