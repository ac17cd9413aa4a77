"""An archive of this checkout: the files that git tracks, as they are now."""

import gzip
import hashlib
import pathlib
import subprocess
import tarfile

from m3ae_tpu.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def write_archive(path: pathlib.Path, root: pathlib.Path = ROOT) -> str:
    """Writes the archive, and returns its digest: the same files give the same bytes.

    Raises:
        UserError: this is not a git checkout.
    """
    with (
        path.open("wb") as file,
        gzip.GzipFile(fileobj=file, filename="", mode="wb", compresslevel=1, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        for name in _git(root, "ls-files", "-z"):
            if (root / name).is_symlink() or (root / name).exists():
                archive.add(root / name, name, recursive=False, filter=_plain)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def untracked_files(root: pathlib.Path = ROOT) -> list[str]:
    """Returns the files that an archive leaves out, but for those that git ignores."""
    return _git(root, "ls-files", "-z", "--others", "--exclude-standard")


def _git(root: pathlib.Path, *words: str) -> list[str]:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        raise UserError(
            f"{root} is not a git checkout, and hosts get the files that git tracks. "
            "Clone the repository, and launch from there."
        ) from None
    return sorted(filter(None, done.stdout.split("\0")))


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Leaves out who owns a file and when it changed."""
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member
