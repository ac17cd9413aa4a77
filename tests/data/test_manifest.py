"""Guards the names of shards: patterns, the starter set and missing shards."""

import pathlib

import pytest

from m3ae_tpu.data import manifest
from m3ae_tpu.data.manifest import STARTER, resolve, shard_name
from m3ae_tpu.errors import UserError


def make_set(folder: pathlib.Path, num_shards: int) -> list[str]:
    """Makes the empty files of a set."""
    folder.mkdir(exist_ok=True)
    paths = [folder / shard_name("train", shard, num_shards) for shard in range(num_shards)]
    for path in paths:
        path.touch()
    return [str(path) for path in paths]


def test_a_pattern_without_files_is_refused(tmp_path):
    with pytest.raises(
        UserError, match=rf"shards = {tmp_path}/no-\* matches no file\. Check the path"
    ):
        resolve(f"{tmp_path}/no-*")


def test_starter_names_the_set_in_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [pathlib.Path(path).parent for path in resolve("starter/train-*")] == [STARTER, STARTER]


def test_a_package_in_a_folder_that_looks_like_a_glob_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "STARTER", tmp_path / "a[1]")
    paths = make_set(tmp_path / "a[1]", 1)
    assert resolve("starter/train-*") == paths


def test_a_missing_shard_of_a_set_is_named_unless_the_pattern_chooses(tmp_path):
    paths = make_set(tmp_path, 3)
    pathlib.Path(paths[1]).unlink()
    with pytest.raises(UserError, match=r"lacks .*train-00001-of-00003\. Copy or make it again"):
        resolve(f"{tmp_path}/train-*")
    assert resolve(f"{tmp_path}/train-0000[02]-of-00003*") == [paths[0], paths[2]]
