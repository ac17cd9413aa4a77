"""Mirror of a folder's small files: on this disk, to be read and appended to, and in a bucket."""

import pathlib
import threading

from m3ae_tpu.files import atomic_write
from m3ae_tpu.storage.folder import RemoteFolder

ADDRESS_FILE = ".address"
"""File of a mirror that holds the address of the folder in the bucket."""


def address_of(path: pathlib.Path) -> str:
    """Returns the address of the folder that a local folder mirrors, or else its own path."""
    try:
        return (path / ADDRESS_FILE).read_text()
    except (FileNotFoundError, NotADirectoryError):
        return str(path)


class Mirror:
    """The files of a folder in a bucket, fetched once; `upload` sends back what changed here.

    Files in subfolders are sent, but not fetched. Hidden files stay on their side.
    """

    def __init__(self, folder: RemoteFolder, path: pathlib.Path):
        """Fetches the files into an empty local folder."""
        self._folder, self._path = folder, path
        self._turn = threading.Lock()
        self._sent: dict[str, tuple[int, int]] = {}
        atomic_write(path / ADDRESS_FILE, folder.address)
        for name in folder.files():
            if not name.startswith("."):
                (path / name).write_bytes(folder.read(name))
                self._sent[name] = _state(path / name)

    def upload(self) -> None:
        """Writes each changed file whole, and removes what was removed here. Thread-safe.

        Raises:
            UserError: the bucket may not be written.
            OSError: the storage cannot be reached.
        """
        with self._turn:
            here = {
                str(path.relative_to(self._path)): path
                for path in sorted(self._path.rglob("*"))
                if path.is_file() and not path.name.startswith(".")
            }
            for name, path in here.items():
                state = _state(path)
                if self._sent.get(name) != state:
                    # Read at once: another thread may append to it.
                    self._folder.write(name, path.read_bytes())
                    self._sent[name] = state
            gone = self._sent.keys() - here.keys()
            self._folder.remove(gone)
            for name in gone:
                del self._sent[name]


def _state(path: pathlib.Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns
