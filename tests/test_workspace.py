"""Guards the map of the repository, `WORKSPACE.md`, and the size of its files."""

import pathlib
import re
import subprocess

import pytest

ROOT = pathlib.Path(__file__).parents[1]


def listed(*options):
    command = ["git", "ls-files", "-z", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout")
    return [pathlib.PurePosixPath(name) for name in done.stdout.split("\0") if name]


@pytest.fixture(scope="module")
def files():
    """Files that git has or would take, links included."""
    paths = listed() + listed("--others", "--exclude-standard")
    return [path for path in paths if (ROOT / path).exists()]


def test_map_names_every_folder_and_file_and_no_other(files):
    folders = {f"{folder}/" for path in files for folder in path.parents if folder.name}
    named = re.findall(r"^- `([^`]+)`", (ROOT / "WORKSPACE.md").read_text(), re.MULTILINE)
    there = folders | {str(path) for path in files}
    missing, gone = sorted(there - set(named)), sorted(set(named) - there)
    assert (missing, gone) == ([], []), "WORKSPACE.md lacks the first and has the second too many"
    assert len(named) == len(set(named)), "WORKSPACE.md names something twice"


def test_no_file_is_too_long_to_read_at_once(files):
    written = {".py", ".md", ".js", ".css", ".html", ".toml", ""}
    lengths = {
        str(path): len((ROOT / path).read_text().splitlines())
        for path in files
        if path.suffix in written and (ROOT / path).is_file()
    }
    assert {name: length for name, length in lengths.items() if length > 350} == {}
