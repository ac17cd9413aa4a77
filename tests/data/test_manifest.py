"""Guards the names of shards: patterns, the starter set and missing shards."""

import os
import pathlib
import re

import pytest

from m3ae_tpu.data import manifest
from m3ae_tpu.data.manifest import STARTER, resolve, shard_name
from m3ae_tpu.errors import UserError


def make_set(folder: pathlib.Path, num_shards: int, name: str = "train") -> list[str]:
    """Makes the empty files of a set."""
    folder.mkdir(exist_ok=True)
    paths = [folder / shard_name(name, shard, num_shards) for shard in range(num_shards)]
    for path in paths:
        path.touch()
    return [str(path) for path in paths]


def test_a_pattern_without_files_is_refused(tmp_path):
    with pytest.raises(
        UserError, match=rf"shards = {tmp_path}/no-\* matches no file that you may read\. Check"
    ):
        resolve(f"{tmp_path}/no-*")


def test_starter_names_the_set_in_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [pathlib.Path(path).parent for path in resolve("starter/train-*")] == [STARTER, STARTER]


@pytest.mark.parametrize("name", ["a[1]", "a*", "[x]", "a?b"])
def test_a_folder_that_looks_like_a_glob_is_found(tmp_path, monkeypatch, name):
    paths = make_set(tmp_path / name, 2)
    assert resolve(f"{tmp_path / name}/train-*") == paths
    assert resolve(paths[0]) == paths[:1]
    monkeypatch.setattr(manifest, "STARTER", tmp_path / name)
    assert resolve("starter/train-*") == paths


@pytest.mark.parametrize(
    "name", ["train", "laion-2b", "cc-12m-en", "train-2024", "x.v1.5", "a-0", "00000-of-00002"]
)
@pytest.mark.parametrize("form", ["{}-*", "{}-*-of-00003*", "{}-?????-of-*", "*", "[!q]*"])
def test_a_missing_shard_of_a_set_is_named_whatever_the_sets_name(tmp_path, name, form):
    paths = make_set(tmp_path, 3, name)
    assert resolve(f"{tmp_path}/{form.format(name)}") == paths
    pathlib.Path(paths[1]).unlink()
    message = rf"lacks {re.escape(paths[1])}\. Copy or make it again"
    with pytest.raises(UserError, match=message):
        resolve(f"{tmp_path}/{form.format(name)}")


@pytest.mark.parametrize(
    "form", ["-0000[02]-of-00003*", "-00000-*", "-00000-of-00003.array_record"]
)
def test_shards_that_the_pattern_leaves_out_are_not_missing(tmp_path, form):
    paths = make_set(tmp_path, 3)
    pathlib.Path(paths[1]).unlink()
    assert set(resolve(f"{tmp_path}/train{form}")) <= {paths[0], paths[2]}


def test_each_set_of_a_folder_is_whole_by_itself(tmp_path):
    one, two = make_set(tmp_path, 2, "cc"), make_set(tmp_path, 3, "cc-12m")
    pathlib.Path(two[2]).unlink()
    assert resolve(f"{tmp_path}/cc-0*") == one
    with pytest.raises(UserError, match=r"lacks .*cc-12m-00002-of-00003"):
        resolve(f"{tmp_path}/cc-*")


def test_a_shard_whose_name_is_not_utf8_is_refused(tmp_path):
    (tmp_path / os.fsdecode(b"caf\xe9")).touch()
    with pytest.raises(UserError, match=r"is not UTF-8\. Rename file and folders\."):
        resolve(f"{tmp_path}/caf*")
