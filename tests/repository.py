"""The files of this repository: those that git tracks, never a user's own beside them."""

import pathlib
import subprocess

ROOT = pathlib.Path(__file__).parents[1]


def tracked_files(*patterns: str) -> list[pathlib.PurePosixPath] | None:
    """Returns the paths of tracked files and links that exist, relative to the root; sorted.

    Args:
        patterns: As `git ls-files` takes them, `*.py` in any folder; none for all files.

    Returns:
        None where git is missing or this is not a checkout.
    """
    command = ["git", "ls-files", "-z", "--", *patterns]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    if done.returncode:
        return None
    paths = [pathlib.PurePosixPath(name) for name in done.stdout.split("\0") if name]
    return sorted(path for path in paths if (ROOT / path).exists())
