"""Guards the name of the package's model: it is found, never written to, never confused."""

import pytest

from m3ae_tpu.errors import UserError
from m3ae_tpu.pretrained.loading import load, load_config
from m3ae_tpu.run import shipped
from m3ae_tpu.run.claim import claim_workdir, files_of
from m3ae_tpu.run.workdir import result_file


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package with a model, far from the current folder."""
    folder = tmp_path / "package" / "starter"
    folder.mkdir(parents=True)
    monkeypatch.setattr(shipped, "STARTER_MODEL", folder)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return folder


def test_the_name_is_the_folder_in_the_package(package, tmp_path):
    with files_of("starter") as folder:
        assert folder == package
    with files_of(tmp_path / "starter") as folder:
        assert folder == tmp_path / "starter"


def test_a_folder_of_the_name_is_in_the_way_only_with_a_model(package, tmp_path):
    own = tmp_path / "here" / "starter"
    own.mkdir()
    with files_of("starter") as folder:
        assert folder == package
    (own / "config.json").touch()
    with (
        pytest.raises(UserError, match=rf"For the folder write {own}; for the other, start"),
        files_of("starter"),
    ):
        pass


def test_no_run_takes_the_name(package):
    with pytest.raises(UserError, match=r"--workdir = starter is the name of the model .*runs/sta"):
        claim_workdir("starter")
    assert not list(package.parent.parent.glob("here/*"))


def test_results_are_not_written_into_the_package(package, tmp_path):
    (tmp_path / "link").symlink_to(package)
    for folder in (package, tmp_path / "link"):
        with pytest.raises(UserError, match=r"WORKDIR = starter is the model .* --output=FOLDER"):
            result_file(folder, None, "evaluation.json")
    assert not list(package.iterdir())
    assert result_file(package, tmp_path / "out", "x") == tmp_path / "out" / "x"


def test_a_mistyped_name_is_told_what_there_is(package):
    for look in (load, load_config, lambda name: result_file(name, None, "x")):
        with pytest.raises(UserError) as raised:
            look(package.parent / "none")
        assert "is not a folder. Name the workdir of a run, such as" in str(raised.value)
        assert "or starter, the model that ships" in str(raised.value)
    with pytest.raises(UserError, match=r"^strater is not a folder\. Did you mean starter\? Name"):
        load("strater")


def test_a_package_without_its_model_is_named(package):
    package.rmdir()
    with pytest.raises(UserError, match=r"is not there\. Install the package again"):
        load("starter")
