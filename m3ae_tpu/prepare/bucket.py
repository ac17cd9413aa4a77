"""Preparation into a bucket: on a disk first, then sent there, the manifest last."""

import concurrent.futures
import fnmatch
import glob
import hashlib
import pathlib
import shutil
import tempfile
from typing import Any

from m3ae_tpu.data.manifest import MANIFEST, read_manifest
from m3ae_tpu.errors import UserError, require
from m3ae_tpu.prepare.convert import DROPPED, DROPPED_CAPTIONS, PASSED_OVER
from m3ae_tpu.prepare.local import WORK_FOLDER, Report, prepare_locally, task_of
from m3ae_tpu.prepare.options import PrepareOptions
from m3ae_tpu.prepare.pieces import Collection
from m3ae_tpu.storage.folder import RemoteFolder

_MARKER = ".unfinished"
"""Object that is there while a set is not complete: the digest of its input and options."""
_NUM_UPLOADS = 8
"""Files that are sent at once."""


def prepare_to_bucket(
    collection: Collection,
    output: str,
    options: PrepareOptions,
    *,
    num_workers: int = 1,
    report: Report = lambda stage, done, total: None,
) -> dict[str, Any]:
    """Does what `prepare_locally` does, with an `output` in a bucket.

    The set is made in a folder of the system's temporary directory (`TMPDIR`), which must have room
    for all of it. Repeated after an interruption, it continues: files that are there already are
    not sent again.

    Raises:
        UserError: like `prepare_locally`, or the bucket cannot be used.
        OSError: the storage cannot be reached.
    """
    folder = RemoteFolder(output)
    folder.require_reachable()
    task = hashlib.sha256(task_of(collection, options).encode()).hexdigest()
    _require_free(folder, options.name, task)
    folder.write(_MARKER, task.encode())
    name = hashlib.sha256(f"{output} {task}".encode()).hexdigest()[:16]
    work = pathlib.Path(tempfile.gettempdir()) / f"m3ae-tpu-prepare-{name}"
    if not (work / MANIFEST).exists():
        try:
            prepare_locally(collection, work, options, num_workers=num_workers, report=report)
        except UserError:
            if not (work / WORK_FOLDER).exists():  # The next command may have another input.
                folder.remove([_MARKER])
                shutil.rmtree(work, ignore_errors=True)
            raise
    _upload(work, folder, report)
    manifest = read_manifest(work)
    folder.remove([_MARKER])
    shutil.rmtree(work)
    return manifest


def _require_free(folder: RemoteFolder, name: str, task: str) -> None:
    """Refuses a folder that holds another set, or a part of one."""
    there = folder.files()
    require(
        MANIFEST not in there,
        f"--output = {folder.address} holds a prepared set already. Name another folder, or "
        "remove it.",
    )
    if _MARKER in there:
        require(
            folder.read(_MARKER).decode() == task,
            f"--output = {folder.address} holds an unfinished preparation of other input or "
            f"options. Repeat its command, name another folder, or remove {_MARKER} and what is "
            "beside it.",
        )
        return
    shards = fnmatch.filter(there, f"{glob.escape(name)}-*-of-*.array_record")
    for found in (*shards, *sorted(there.keys() & {DROPPED, PASSED_OVER, DROPPED_CAPTIONS})):
        raise UserError(
            f"--output = {folder.address} holds {found}, which belongs to no prepared set. "
            "Name another folder, or move it."
        )


def _upload(work: pathlib.Path, folder: RemoteFolder, report: Report) -> None:
    """Sends the files of a finished set that are not there yet, the manifest last."""
    there = folder.files()
    paths = sorted(path for path in work.iterdir() if path.is_file() and path.name != MANIFEST)

    def send(path: pathlib.Path) -> None:
        with path.open("rb") as file:
            md5 = hashlib.file_digest(file, "md5").hexdigest()
        if path.name not in there or there[path.name].md5 != md5:
            folder.upload(path.name, path)

    report("sending", 0, len(paths))
    with concurrent.futures.ThreadPoolExecutor(_NUM_UPLOADS) as pool:
        for done, _ in enumerate(pool.map(send, paths), 1):
            report("sending", done, len(paths))
    # Its presence means that the set is complete.
    folder.upload(MANIFEST, work / MANIFEST)
