"""Workdirs on a disk and in a bucket, whose stored files tests read, damage and put back."""

import pathlib

import fake_gcs

from m3ae_tpu.files import is_remote
from m3ae_tpu.storage.mirror import ADDRESS_FILE


class OnDisk:
    """A workdir on a disk."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.address = folder, str(folder)

    def contents(self) -> dict[str, bytes]:
        """Returns what the stored files hold, by their path in the workdir."""
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        return {str(path.relative_to(self.folder)): path.read_bytes() for path in files}

    def write(self, name: str, content: bytes | None) -> None:
        """Writes a file, or removes it."""
        path = self.folder / name
        if content is None:
            path.unlink()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


class InBucket:
    """A workdir in an empty bucket. Its small files are in a folder on the disk."""

    address = "gs://bucket/run"

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        (folder / ADDRESS_FILE).write_text(self.address)
        server = fake_gcs.shared_server()
        server.restart("bucket")
        self._objects = server.buckets["bucket"]

    def contents(self) -> dict[str, bytes]:
        """Returns what the objects hold, by their name in the workdir."""
        return {
            name.removeprefix("run/"): content
            for name, (content, _) in self._objects.items()
            if name.startswith("run/")
        }

    def write(self, name: str, content: bytes | None) -> None:
        """Writes an object, or removes it."""
        if content is None:
            del self._objects[f"run/{name}"]
        else:
            self._objects.put(f"run/{name}", content, {}, {})


type Workdir = OnDisk | InBucket


def place_of(address: str) -> str | pathlib.Path:
    """Returns an address as programs take it."""
    return address if is_remote(address) else pathlib.Path(address)


def step_files(workdir: Workdir, step: int) -> dict[str, bytes]:
    """Returns what the files of a step hold, by their path in the workdir."""
    beginning = f"checkpoints/{step}/"
    contents = workdir.contents().items()
    return {name: content for name, content in contents if name.startswith(beginning)}


def flipped(content: bytes) -> bytes:
    """Returns content with one bit of its middle changed."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
