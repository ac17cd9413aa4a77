"""Shards that the tests of the data share."""

import pathlib

import pytest
from small_sets import write_sets


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> pathlib.Path:
    """24 pairs, 10 images and 15 texts of the starter set."""
    folder = tmp_path_factory.mktemp("shards")
    write_sets(folder)
    return folder
