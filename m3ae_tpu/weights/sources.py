"""Files and folders of other libraries, opened: tensors, and the settings that lie beside them."""

import json
import pathlib
from typing import Any, Literal, NamedTuple

import numpy as np
import safetensors

from m3ae_tpu.errors import UserError, require
from m3ae_tpu.weights.matching import some
from m3ae_tpu.weights.tensors import StoredTensor, Tensors
from m3ae_tpu.weights.torch_zip import is_torch_zip, read_torch_zip

type SourceFormat = Literal["m3ae", "mae", "hf", "timm"]

_FILES = ("model.safetensors", "pytorch_model.bin")
_ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".pkl")
_FLOATS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# What other files begin with, and what they are.
_WRONG_BEGINNINGS = {
    b"version https://git-lfs": "is a pointer of Git LFS, not the file. Fetch it: git lfs pull",
    b"<": "is a web page, not weights: the download failed. Download the file itself",
    b"\x89HDF": "is an HDF5 file. Save the weights as safetensors",
    b"\x1f\x8b": "is compressed by gzip. Unpack it first",
    b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9": (
        "was written by a torch older than 1.6. Open it in torch and save it again"
    ),
}
_PICKLES = {b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"}
_OLD_PICKLES = {b"(", b"}", b"]", b")", b"c"}
"""First steps of protocols 0 and 1, which do not say their number."""


class Source(NamedTuple):
    """An opened source."""

    path: pathlib.Path
    """The file, or the folder of several."""
    tensors: Tensors
    config: dict[str, Any]
    """`config.json` beside the tensors; empty where there is none."""
    preprocessor: dict[str, Any]
    """`preprocessor_config.json`, likewise."""
    flags: dict[str, Any]
    """The training's flags, where the file holds them."""


def weights_file(path: pathlib.Path) -> pathlib.Path:
    """Returns the file of weights that a user named, by itself or by its folder.

    Raises:
        UserError: it does not exist, or the folder holds none or several.
    """
    require(path.exists(), f"--input = {path} does not exist. Check the path.")
    if not path.is_dir():
        return path
    for name in _FILES:
        for candidate in (path / name, path / f"{name}.index.json"):
            if candidate.exists():
                return candidate
    found = sorted(file for file in path.iterdir() if file.suffix in _ENDINGS)
    require(
        bool(found), f"--input = {path} holds no {' and no '.join(_FILES)}. Name a file of weights."
    )
    names = [file.name for file in found]
    require(len(found) == 1, f"--input = {path} holds {some(names)}. Name one of them.")
    return found[0]


def require_whole(path: pathlib.Path) -> None:
    """Refuses files whose first bytes show something else than weights.

    Raises:
        UserError: the file is empty, a web page, a pointer, or of a format that is not read.
    """
    with path.open("rb") as file:
        beginning = file.read(64)
    require(bool(beginning), f"{path} is empty. Download it again.")
    for start, problem in _WRONG_BEGINNINGS.items():
        require(not beginning.lstrip().startswith(start), f"{path} {problem}.")


def is_pickle(path: pathlib.Path) -> bool:
    """Returns whether a file begins as a pickle does."""
    with path.open("rb") as file:
        beginning = file.read(16)
    if beginning[4:9] == b"\0\0\0\0{":
        return False  # The header of safetensors after its length, whatever bytes that has.
    return beginning[:2] in _PICKLES or beginning[:1] in _OLD_PICKLES


def open_source(path: pathlib.Path) -> Source:
    """Opens safetensors or a file of `torch.save`, one or several parts, and what lies beside it.

    Args:
        path: As `weights_file` returns it.

    Raises:
        UserError: a file cannot be read, is damaged or was not copied to its end.
    """
    flags: dict[str, Any] = {}
    if path.name.endswith(".index.json"):
        tensors = _parts(path)
    elif is_torch_zip(path):
        tensors, flags = read_torch_zip(path)
    else:
        tensors = Tensors(_safetensors(path))
    return Source(
        path=path,
        tensors=tensors,
        config=_json_beside(path, "config.json"),
        preprocessor=_json_beside(path, "preprocessor_config.json"),
        flags=flags,
    )


def likely_format(names: set[str]) -> SourceFormat | None:
    """Returns the format that tensors of some names have, or None."""
    if any("embeddings.patch_embeddings" in name for name in names):
        return "hf"
    if "patch_embed.proj.weight" in names:
        return "mae" if any(name.startswith("decoder_") for name in names) else "timm"
    return "m3ae" if "image_embedding/kernel" in names else None


def _parts(index: pathlib.Path) -> Tensors:
    """Opens the files that an index names, and checks that each tensor is where it says."""
    listed = _json_beside(index, index.name).get("weight_map")
    is_list = isinstance(listed, dict) and all(isinstance(each, str) for each in listed.values())
    require(is_list and bool(listed), f"{index} lists no tensors. Download it again.")
    assert isinstance(listed, dict)
    stored: dict[str, StoredTensor] = {}
    for name in sorted(set(listed.values())):
        part = index.parent / pathlib.PurePath(name).name
        require(part.exists(), f"{index} names {name}, which is not there. Download it too.")
        require_whole(part)
        if is_torch_zip(part):
            stored |= read_torch_zip(part).tensors.stored
        else:
            stored |= _safetensors(part)
    missing = sorted(listed.keys() - stored.keys())
    require(
        not missing, f"{index} lists {some(missing)}, which no file holds. Download them again."
    )
    return Tensors(stored)


def _safetensors(path: pathlib.Path) -> dict[str, StoredTensor]:
    try:
        file = safetensors.safe_open(path, "numpy")
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        raise UserError(
            f"{path} is neither safetensors nor a file of torch.save, is damaged, or was not "
            f"copied to its end ({str(error)[:80]}). Download it again."
        ) from None
    return {
        name: StoredTensor(
            tuple(view.get_shape()),
            _FLOATS.get(str(view.get_dtype()), str(view.get_dtype())),
            lambda name=name: np.asarray(file.get_tensor(name)),
        )
        for name, view in slices.items()
    }


def _json_beside(path: pathlib.Path, name: str) -> dict[str, Any]:
    """Returns the content of a JSON file in the folder of another; empty where there is none."""
    beside = path.parent / name
    if not beside.exists():
        return {}
    require_whole(beside)
    try:
        content = json.loads(beside.read_bytes())
    except (ValueError, RecursionError):
        raise UserError(f"{beside} is not JSON. Download it again.") from None
    require(isinstance(content, dict), f"{beside} is not a JSON object. Download it again.")
    return content
