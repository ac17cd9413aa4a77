"""Collections that the tests of preparation share."""

import pytest
from prepare_forms import run, starter_pairs, write_folder


@pytest.fixture(scope="session")
def pairs():
    """Images and captions, small and real."""
    return starter_pairs()


@pytest.fixture(scope="session")
def prepared(pairs, tmp_path_factory):
    """The pairs as a folder with a list, `given`, and the set that is made of it, `set`."""
    folder = tmp_path_factory.mktemp("prepared")
    write_folder(folder / "given", pairs)
    run(folder / "given", folder / "set")
    return folder
