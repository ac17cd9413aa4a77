"""Guards what happens to files that are damaged, unfinished, of another format, or hostile."""

import io
import os
import pathlib
import pickle
import zipfile

import numpy as np
import pytest
import safetensors.numpy
from paper_pickles import paper_pickle

from m3ae_tpu.errors import UserError
from m3ae_tpu.weights import torch_zip
from m3ae_tpu.weights.imported import Choices
from m3ae_tpu.weights.importing import import_weights, read_weights
from m3ae_tpu.weights.sources import weights_file
from m3ae_tpu.weights.torch_zip import read_torch_zip

TWINS = pathlib.Path(__file__).parents[1] / "golden" / "twins"
PTH = TWINS / "facebook_mae" / "mae_visualize.pth"
SAFETENSORS = TWINS / "timm" / "model.safetensors"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"


def with_pickle(content):
    """The golden file of torch.save with another pickle in it."""
    made = io.BytesIO()
    with zipfile.ZipFile(PTH) as old, zipfile.ZipFile(made, "w") as new:
        for name in old.namelist():
            new.writestr(name, content if name.endswith("data.pkl") else old.read(name))
    return made.getvalue()


@pytest.mark.parametrize("format", ["m3ae", "hf"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"is empty\. Download it again"),
        (LFS, r"is a pointer of Git LFS, not the file\. Fetch it: git lfs pull"),
        (b"\n<!DOCTYPE html><html>", r"is a web page, not weights: the download failed"),
        (b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9", r"a torch older than 1\.6\. Open it in torch"),
        (b"\x1f\x8b\x08\x00", r"is compressed by gzip"),
        (b"\x89HDF\r\n", r"is an HDF5 file"),
        (PTH.read_bytes()[:-2000], r"was not copied to its end"),
        (PTH.read_bytes()[:3000], r"was not copied to its end"),
        (SAFETENSORS.read_bytes()[:-100], r"was not copied to its end"),
        (SAFETENSORS.read_bytes()[:50], r"was not copied to its end"),
        (b"no weights" * 200, r"is neither safetensors nor a file of torch\.save"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else value[:20],
)
def test_unfinished_downloads_are_told_apart(tmp_path, content, message, format):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_weights(path, format, Choices())


@pytest.mark.parametrize(
    ("source", "format", "right"),
    [
        ("timm", "hf", "timm"),
        ("timm", "mae", "timm"),
        ("vit_4", "timm", "hf"),
        ("vitmae_5", "mae", "hf"),
        ("vit_4", "m3ae", "hf"),
        ("facebook_mae/mae_visualize.pth", "m3ae", "mae"),
        ("facebook_mae/mae_visualize.pth", "hf", "mae"),
        ("facebook_mae/mae_visualize.pth", "timm", "mae"),
    ],
)
def test_another_format_than_the_files_is_named(source, format, right):
    with pytest.raises(UserError, match=f"looks like weights of .* Give --format={right}"):
        read_weights(weights_file(TWINS / source), format, Choices())


def test_pickles_are_for_the_papers_format_alone(tmp_path):
    path = tmp_path / "m.pkl"
    path.write_bytes(paper_pickle("plain"))
    with pytest.raises(UserError, match=r"is a pickle.* give --format=m3ae"):
        read_weights(path, "mae", Choices())


def test_folders_without_weights_or_with_several_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"--input = .*none does not exist"):
        weights_file(tmp_path / "none")
    with pytest.raises(UserError, match=r"holds no model\.safetensors and no pytorch_model\.bin"):
        weights_file(tmp_path)
    for name in ("a.pth", "b.pth"):
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=r"holds a\.pth, b\.pth\. Name one of them"):
        weights_file(tmp_path)
    with pytest.raises(UserError, match=r"holds a\.pth"):
        import_weights(tmp_path, tmp_path / "out", "mae")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(UserError, match=r"is there already and not empty"):
        import_weights(PTH, tmp_path / "full", "mae")
    with pytest.raises(UserError, match=r"how many attention heads its width of 12"):
        import_weights(PTH, tmp_path / "new", "mae")
    assert not (tmp_path / "new").exists()


class Call:
    """Runs a function when an ordinary unpickler reads it."""

    def __reduce__(self):
        return os.system, ("touch ran",)


def storage(dtype="FloatStorage", key="0", size=4):
    """Steps of a pickle that push a storage."""
    pid = b"(\x8c\x07storagectorch\n%s\n\x8c\x01%s\x8c\x03cpuK%ct" % (
        dtype.encode(),
        key.encode(),
        size,
    )
    return pid + b"Q"


def tensor(offset=0, shape=b"K\x02K\x02\x86", strides=b"K\x02K\x01\x86", **of_storage):
    """A pickle of a state dict with one tensor `a`."""
    made = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage(**of_storage)
    made += b"K%c" % offset + shape + strides + b"\x89Nt"
    return b"\x80\x04}\x8c\x01a" + made + b"Rs."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({"model": Call()}), r"nothing in it was run: it holds posix\.system"),
        (
            b"\x80\x02ctimm.models.vision_transformer\nVisionTransformer\n)\x81.",
            r"it holds timm\.models\.vision_transformer\.VisionTransformer",
        ),
        (tensor(size=3), r"a tensor that is larger than its storage"),
        (tensor(offset=1), r"a tensor that is larger than its storage"),
        (
            tensor(shape=b"J\xff\xff\xff\x7fK\x02\x86", strides=b"K\x00K\x00\x86"),
            r"a tensor that is larger than its storage",
        ),
        (tensor(dtype="ComplexFloatStorage"), r"it holds torch\.ComplexFloatStorage"),
        (b"\x80\x04}.", r"holds no tensors under model or state_dict"),
        (b"\x80\x04" + b"]" * 10_000 + b"a" * 9_999 + b".", r"holds no tensors under model"),
        (tensor()[:-3], r"not copied to its end"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else value[-20:],
)
def test_pickles_in_files_of_torch_run_nothing(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.pth").write_bytes(with_pickle(content))
    with pytest.raises(UserError, match=message):
        read_torch_zip(tmp_path / "m.pth")
    assert not (tmp_path / "ran").exists()


def test_transposed_and_shifted_tensors_are_read_in_their_order(tmp_path):
    (tmp_path / "m.pth").write_bytes(
        with_pickle(tensor(offset=1, shape=b"K\x02K\x03\x86", strides=b"K\x01K\x02\x86", size=9))
    )
    got = read_torch_zip(tmp_path / "m.pth").tensors["a"]
    with zipfile.ZipFile(PTH) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/data/0"))
        numbers = np.frombuffer(archive.read(name), np.float32)
    np.testing.assert_array_equal(got, numbers[[[1, 3, 5], [2, 4, 6]]])


def test_archives_that_unpack_to_far_more_or_are_encrypted_are_refused(tmp_path, monkeypatch):
    path, content = tmp_path / "m.pth", bytearray(PTH.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = content.find(signature)
        while start >= 0:
            content[start + flags] |= 1
            start = content.find(signature, start + 1)
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged, or was not copied.*encrypted"):
        read_torch_zip(path)
    monkeypatch.setattr(torch_zip, "_LARGEST_PICKLE", 1_000)
    path.write_bytes(with_pickle(b"\x80\x04]" + b"0]" * 1_000 + b"."))
    with pytest.raises(UserError, match=r"data\.pkl in it unpacks to more than any checkpoint"):
        read_torch_zip(path)


def test_safetensors_whose_length_begins_like_a_pickle_are_none(tmp_path):
    path, arrays = tmp_path / "m.safetensors", {"a": np.zeros(2, np.float32)}
    for size in range(400, 1_000):
        safetensors.numpy.save_file(arrays, path, {"note": "x" * size})
        if path.read_bytes()[:2] == b"\x80\x02":
            break
    assert path.read_bytes()[:2] == b"\x80\x02"
    with pytest.raises(UserError, match=r"holds no model that can be imported \(tensors a"):
        read_weights(path, "hf", Choices())


@pytest.mark.parametrize(
    "content",
    [b"[]", b"{}", b'{"weight_map": ["a"]}', b'{"weight_map": {"a": [1]}}', b"[" * 99_999],
    ids=["list", "nothing", "list of names", "list as file", "nested"],
)
def test_damaged_indices_of_several_files_are_refused(tmp_path, content):
    path = tmp_path / "model.safetensors.index.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"index\.json (lists no tensors|is not (JSON|a JSON ob))"):
        read_weights(path, "hf", Choices())


def test_a_changed_byte_in_a_file_of_torch_is_noticed(tmp_path):
    content = bytearray(PTH.read_bytes())
    with zipfile.ZipFile(PTH) as archive:
        offset = max(info.header_offset for info in archive.infolist() if "/data/" in info.filename)
    content[offset + 200] ^= 1
    (tmp_path / "m.pth").write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged, or was not copied to its end"):
        read_weights(tmp_path / "m.pth", "mae", Choices(num_heads=4, decoder_num_heads=3))
