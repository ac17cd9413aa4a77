"""The folder of a run's checkpoints: its steps and their files, on a disk or in a bucket."""

import abc
import concurrent.futures
import hashlib
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

from m3ae_tpu.files import is_remote
from m3ae_tpu.run.digests import StoredFile
from m3ae_tpu.storage.folder import RemoteFolder, StoredObject
from m3ae_tpu.storage.mirror import address_of

CHECKPOINTS = "checkpoints"
_COMMITTED = "commit_success.txt"
"""The object that Orbax writes last, since folders in a bucket cannot be renamed."""


class Steps(abc.ABC):
    """The folder of checkpoints. Each step is a subfolder of its number."""

    address: str
    """Path or address of the folder."""
    algorithm: str
    """Digest of files that is cheap here."""

    @abc.abstractmethod
    def committed(self) -> list[int]:
        """Returns the steps that were saved to the end, damaged ones too, oldest first."""

    @abc.abstractmethod
    def uncommitted(self) -> list[int]:
        """Returns the steps that lie there under their number, but were not saved to the end."""

    @abc.abstractmethod
    def make(self) -> None:
        """Makes the folder, and removes what unfinished saves and removals left."""

    @abc.abstractmethod
    def remove(self, step: int) -> None:
        """Removes a step. A kill meanwhile leaves no part of it that looks like a step."""

    @abc.abstractmethod
    def files(self, step: int) -> Mapping[str, StoredFile]:
        """Returns the files of a committed step by their path in its folder."""

    @abc.abstractmethod
    def read(self, step: int, name: str) -> bytes:
        """Returns the content of a committed step's file.

        Raises:
            FileNotFoundError: there is no such file.
        """

    @abc.abstractmethod
    def unfinished_files(self, step: int) -> Mapping[str, StoredFile]:
        """Returns the files of the step that is being saved, before it is committed."""

    @abc.abstractmethod
    def write_unfinished(self, step: int, name: str, content: bytes) -> None:
        """Writes a file of the step that is being saved."""

    def path(self, step: int) -> Any:
        """Returns the step's folder as Orbax takes it."""
        from etils import epath

        return epath.Path(self.address) / str(step)


def steps_of(workdir: pathlib.Path) -> Steps:
    """Returns the folder of a workdir's checkpoints. The workdir may mirror one in a bucket."""
    address = address_of(workdir)
    if is_remote(address):
        return _BucketSteps(f"{address}/{CHECKPOINTS}")
    return _DiskSteps(workdir.absolute() / CHECKPOINTS)


class _DiskSteps(Steps):
    """Checkpoints on a disk: a step gets its name when it is complete."""

    algorithm = "sha256"

    def __init__(self, folder: pathlib.Path):
        self._folder, self.address = folder, str(folder)

    def committed(self) -> list[int]:
        try:
            names = os.listdir(self._folder)
        except FileNotFoundError:  # Any other error is raised: it must not count as empty.
            return []
        return sorted(int(name) for name in names if name.isdigit())

    def uncommitted(self) -> list[int]:
        return []

    def make(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        for pattern in ("*.orbax-checkpoint-tmp*", "*.removed"):
            for path in self._folder.glob(pattern):
                shutil.rmtree(path)

    def remove(self, step: int) -> None:
        removed = self._folder / f"{step}.removed"
        os.replace(self._folder / str(step), removed)
        shutil.rmtree(removed)

    def files(self, step: int) -> Mapping[str, StoredFile]:
        return _disk_files(self._folder / str(step))

    def read(self, step: int, name: str) -> bytes:
        return (self._folder / str(step) / name).read_bytes()

    def unfinished_files(self, step: int) -> Mapping[str, StoredFile]:
        return _disk_files(self._unfinished(step))

    def write_unfinished(self, step: int, name: str, content: bytes) -> None:
        (self._unfinished(step) / name).write_bytes(content)

    def _unfinished(self, step: int) -> pathlib.Path:
        found = self._folder.glob(f"{step}.orbax-checkpoint-tmp*")
        return max(found, key=lambda path: path.stat().st_mtime)


class _DiskFile(StoredFile):
    """A file of a step on a disk."""

    def __init__(self, path: pathlib.Path):
        self._path, self.num_bytes = path, path.stat().st_size

    def digest(self, algorithm: str) -> str:
        with self._path.open("rb") as file:
            return hashlib.file_digest(file, algorithm).hexdigest()


def _disk_files(folder: pathlib.Path) -> dict[str, StoredFile]:
    return {
        str(path.relative_to(folder)): _DiskFile(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


class _BucketSteps(Steps):
    """Checkpoints in a bucket: a step is complete when its marker is there.

    Objects are removed here, not by Orbax: it asks for the bucket's properties, which takes a
    permission that those who may use all objects need not have.
    """

    algorithm = "md5"

    def __init__(self, address: str):
        _set_up_libraries()
        self.address, self._objects = address, RemoteFolder(address)

    def committed(self) -> list[int]:
        return [step for step, is_committed in self._is_committed().items() if is_committed]

    def uncommitted(self) -> list[int]:
        return [step for step, is_committed in self._is_committed().items() if not is_committed]

    def _is_committed(self) -> dict[int, bool]:
        steps = sorted(int(name) for name in self._objects.subfolders() if name.isdigit())
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            markers = pool.map(lambda step: self._objects.exists(f"{step}/{_COMMITTED}"), steps)
        return dict(zip(steps, markers, strict=True))

    def make(self) -> None:
        for step in self.uncommitted():
            self.remove(step)

    def remove(self, step: int) -> None:
        self._objects.remove([f"{step}/{_COMMITTED}"])
        self._objects.remove(f"{step}/{name}" for name in self._objects.objects(str(step)))

    def files(self, step: int) -> Mapping[str, StoredFile]:
        return {
            name: _BucketFile(self._objects, f"{step}/{name}", stored)
            for name, stored in self._objects.objects(str(step)).items()
        }

    def read(self, step: int, name: str) -> bytes:
        return self._objects.read(f"{step}/{name}")

    # Objects have their final names at once.
    unfinished_files = files

    def write_unfinished(self, step: int, name: str, content: bytes) -> None:
        self._objects.write(f"{step}/{name}", content)


class _BucketFile(StoredFile):
    """An object of a step. Its MD5 is the one that the storage computed when it received it."""

    def __init__(self, folder: RemoteFolder, name: str, stored: StoredObject):
        self._folder, self._name, self._md5 = folder, name, stored.md5
        self.num_bytes = stored.num_bytes

    def digest(self, algorithm: str) -> str:
        if algorithm == "md5" and self._md5:
            return self._md5
        return hashlib.new(algorithm, self._folder.read(self._name)).hexdigest()


def _set_up_libraries() -> None:
    """Makes Orbax reach buckets by gcsfs, and see what other processes wrote there."""
    from fsspec.config import conf

    os.environ.setdefault("EPATH_USE_TF", "false")
    # gcsfs would keep its first listing of a folder for ever.
    conf.setdefault("gcs", {})["use_listings_cache"] = False
    conf.setdefault("gs", {})["use_listings_cache"] = False
