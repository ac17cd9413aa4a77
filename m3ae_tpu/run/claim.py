"""Claims on a workdir: its small files on this disk, used by one run at a time.

On a disk the claim is a lock on a file, which the system frees however the process ends. In a
bucket it is a lease, and the files are a mirror that goes back to the bucket before each commit.
"""

import contextlib
import errno
import fcntl
import logging
import os
import pathlib
import tempfile
import threading
from collections.abc import Iterator

from m3ae_tpu.errors import UserError, require
from m3ae_tpu.files import Place, is_remote
from m3ae_tpu.parallel import processes
from m3ae_tpu.run.shipped import located, require_other_name
from m3ae_tpu.storage.folder import RemoteFolder
from m3ae_tpu.storage.lease import Lease
from m3ae_tpu.storage.mirror import Mirror

_LOG = logging.getLogger(__name__)
_UPLOAD_SECONDS = 30.0
"""Time between two uploads of the small files while a run trains."""
_TRIED = ".tried"
"""Object that is written and removed to see whether a folder may be written."""


class DiskClaim:
    """A lock on a workdir on a disk, which of several processes the leader holds."""

    def __init__(self, path: pathlib.Path):
        """Makes the folder if it is missing.

        Raises:
            UserError: another process uses it.
            OSError: it cannot be made or locked.
        """
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self._lock = None
        if not processes.is_leader():
            return
        # A plain number is not closed when collected.
        self._lock = os.open(path / ".lock", os.O_RDWR | os.O_CREAT)
        try:
            # lockf, not flock: child processes that outlive a killed run do not hold it.
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise UserError(
                f"--workdir = {path} is in use by another process. "
                "Wait for it, stop it, or give another --workdir."
            ) from None

    def before_commit(self) -> None:
        """Does nothing: what is written is on the disk, and the lock cannot be lost."""

    def release(self) -> None:
        """Frees the lock."""
        if self._lock is not None:
            os.close(self._lock)


class BucketClaim:
    """A lease on a workdir in a bucket, and the mirror of its small files.

    Of several processes only the leader holds the lease. Each sends the files back that it has
    written.
    """

    def __init__(self, address: str):
        """Takes the lease and fetches the files.

        Raises:
            UserError: the bucket cannot be used, or another process uses the workdir.
            OSError: the storage cannot be reached.
        """
        folder = RemoteFolder(address)
        with contextlib.ExitStack() as stack:
            folder.require_reachable()
            self._lease = None
            if processes.is_leader():
                self._lease = Lease(folder, option="--workdir", show=_show)
                stack.callback(self._lease.release)
            self.path = stack.enter_context(_empty_folder(address))
            self._mirror = Mirror(folder, self.path)
            self._stack = stack.pop_all()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._upload_until_stopped, daemon=True)
        self._thread.start()

    def before_commit(self) -> None:
        """Sends the small files back and makes sure of the lease. Called in the background.

        Raises:
            UserError: another run has taken the workdir over.
            OSError: the storage cannot be reached.
        """
        self._confirm()
        self._mirror.upload()
        self._confirm()

    def release(self) -> None:
        """Sends the small files back for the last time, and gives the lease up."""
        self._stop.set()
        with self._stack:
            # A thread that goes on while the interpreter ends fails at its next import.
            self._thread.join()
            self._confirm()
            self._mirror.upload()

    def _confirm(self) -> None:
        if self._lease is not None:
            self._lease.confirm()

    def _upload_until_stopped(self) -> None:
        is_logged = False
        while not self._stop.wait(_UPLOAD_SECONDS):
            try:
                self.before_commit()
                is_logged = False
            except (OSError, UserError) as error:
                # A save raises it; until then the next turn may reach the storage.
                if not is_logged:
                    _LOG.warning("metrics and log are not in the bucket yet: %s", error)
                is_logged = True


type Claim = DiskClaim | BucketClaim


def claim_workdir(address: Place) -> Claim:
    """Claims a workdir, which is made if missing, until `release` or the end of the process.

    Raises:
        UserError: it cannot be used, or another process uses it.
        OSError: it cannot be made.
    """
    if is_remote(address):
        return BucketClaim(os.fspath(address))
    require_other_name(address)
    path = pathlib.Path(address)
    for folder in (path, path / "checkpoints"):
        # Found out now: Orbax would fail in the background, after the first steps.
        if folder.exists() and not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
    return DiskClaim(path)


@contextlib.contextmanager
def files_of(address: Place) -> Iterator[pathlib.Path]:
    """Yields the folder of a workdir's small files, for programs that look at a run.

    Those of a bucket are fetched, and what changed is sent back at the end. Claims nothing: the
    run may be training. `starter` stands for the package's own model.

    Raises:
        UserError: the bucket cannot be used, or holds no such workdir.
    """
    if not is_remote(address):
        yield pathlib.Path(located(address))
        return
    folder = RemoteFolder(os.fspath(address))
    folder.require_reachable()
    require(
        bool(folder.files() or folder.subfolders()),
        f"WORKDIR = {folder.address} holds nothing. Name the workdir of a run.",
    )
    with _mirrored(folder) as path:
        yield path


@contextlib.contextmanager
def output_folder(address: Place | None) -> Iterator[pathlib.Path | None]:
    """Yields the folder that a program writes results to, None for none.

    The files of one in a bucket are fetched, and what changed is sent back at the end.

    Raises:
        UserError: the bucket cannot be used, or not be written.
    """
    if address is None or not is_remote(address):
        yield None if address is None else pathlib.Path(address)
        return
    folder = RemoteFolder(os.fspath(address))
    folder.require_reachable()
    # Found out now, not after the work.
    folder.write(_TRIED, b"")
    folder.remove([_TRIED])
    with _mirrored(folder) as path:
        yield path


@contextlib.contextmanager
def _mirrored(folder: RemoteFolder) -> Iterator[pathlib.Path]:
    """Yields a temporary folder with the files of one in a bucket, which gets back what changed."""
    with _empty_folder(folder.address) as path:
        mirror = Mirror(folder, path)
        yield path
        mirror.upload()


@contextlib.contextmanager
def _empty_folder(address: str) -> Iterator[pathlib.Path]:
    """Yields a temporary folder with the name that an address ends with."""
    with tempfile.TemporaryDirectory(prefix="m3ae-") as parent:
        path = pathlib.Path(parent) / address.rstrip("/").rpartition("/")[2]
        path.mkdir()
        yield path


def _show(message: str) -> None:
    print(message, flush=True)
