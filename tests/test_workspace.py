"""Guards the map of the repository: WORKSPACE.md lists what git tracks, and documents name files
that exist.
"""

import pathlib
import re

import pytest
from repository import ROOT, tracked_files
from workspace_map import WORKSPACE, map_of, with_map


@pytest.fixture(scope="module")
def tracked():
    paths = tracked_files()
    if paths is None:
        pytest.skip("the map lists what git tracks, and this folder is not a git checkout")
    return paths


def test_map_is_what_make_map_writes(tracked):
    text = WORKSPACE.read_text()
    assert text == with_map(text, tracked), "WORKSPACE.md is out of date. Run: make map"


def test_a_file_that_nothing_describes_is_refused(tracked):
    with pytest.raises(ValueError, match=r"^notes\.csv is not described\. Give it a line in"):
        map_of([*tracked, pathlib.PurePosixPath("notes.csv")])


def test_a_description_of_nothing_is_refused(tracked):
    others = [path for path in tracked if path.name != "constraints.txt"]
    with pytest.raises(ValueError, match=r"describes what does not exist: \['constraints.txt'\]"):
        map_of(others)


def test_documents_name_files_that_exist(tracked):
    documents = [path for path in tracked if path.suffix == ".md" and "starter" not in path.parts]
    folders = "configs|docs|kernels|m3ae_tpu|pipelines|tests"
    missing = [
        f"{document} names {name}"
        for document in documents
        for name in re.findall(rf"`((?:{folders})/[\w./-]*)`", (ROOT / document).read_text())
        if not (ROOT / name).exists()
    ]
    assert missing == []
