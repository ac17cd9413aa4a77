"""Files of `torch.save` read without torch: a zip of a pickle and the bytes of each tensor.

Only tensors and plain data are made; nothing that the pickle names is imported or called.
"""

import io
import math
import pathlib
import zipfile
import zlib
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from m3ae_tpu.errors import UserError, require
from m3ae_tpu.weights.safe_pickle import NUMPY_NAMES, Fields, Inert, load_pickle
from m3ae_tpu.weights.tensors import StoredTensor, Tensors

_DTYPES: dict[str, Any] = {
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "DoubleStorage": np.float64,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
# What zipfile raises for archives that are damaged, encrypted, or packed in a way it does not know.
_FAULTS = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError)
_LARGEST_PICKLE = 2**28
"""Bytes. Tensors lie beside the pickle, not in it."""
_INERT_MODULES = {"pathlib", "torch.optim.lr_scheduler"}
_COUNTS = {"num_batches_tracked"}


class TorchFile(NamedTuple):
    """The content of a file of `torch.save`."""

    tensors: Tensors
    """Those of the model, by name."""
    flags: dict[str, Any]
    """The training's flags, where the file has an `args`."""


class _Storage(NamedTuple):
    """A stretch of numbers in the file."""

    key: str
    dtype: np.dtype
    size: int


class _Tensor(NamedTuple):
    """A view of a storage."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class _Rebuilt(Inert):
    """Stands for `torch._utils._rebuild_tensor_v2`."""

    def __new__(cls, storage: Any, offset: Any, shape: Any, strides: Any, *_facts: Any) -> Any:
        sizes = (offset, *shape, *strides)
        is_sane = isinstance(storage, _Storage) and all(
            type(size) is int and size >= 0 for size in sizes
        )
        if not is_sane or len(shape) != len(strides):
            raise ValueError("a tensor that does not fit its storage")
        last = offset + sum(
            (size - 1) * stride for size, stride in zip(shape, strides, strict=True)
        )
        # No tensor of a model repeats numbers: a small file would fill the memory.
        if math.prod(shape) > storage.size or (math.prod(shape) and last >= storage.size):
            raise ValueError("a tensor that is larger than its storage")
        return _Tensor(storage, offset, tuple(shape), tuple(strides))


class _Parameter(Inert):
    """Stands for `torch._utils._rebuild_parameter`, which keeps the tensor."""

    def __new__(cls, tensor: Any, *_facts: Any) -> Any:
        return tensor


_NAMES: dict[str, type] = {
    **NUMPY_NAMES,
    "torch._utils._rebuild_tensor_v2": _Rebuilt,
    "torch._utils._rebuild_parameter": _Parameter,
    "torch.Size": tuple,
    "torch.device": Inert,
    "argparse.Namespace": Fields,
    "collections.defaultdict": NUMPY_NAMES["collections.OrderedDict"],
    **{
        f"torch.{name}": type(name, (Inert,), {"dtype": np.dtype(dtype)})
        for name, dtype in _DTYPES.items()
    },
}


def is_torch_zip(path: pathlib.Path) -> bool:
    """Returns whether a file begins as a zip does."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def read_torch_zip(path: pathlib.Path) -> TorchFile:
    """Opens a file of `torch.save` (torch 1.6 or newer) with the tensors of one model.

    They are read one by one, when they are asked for.

    Raises:
        UserError: the file is damaged, cut off, no such file, or holds anything else than tensors
            and plain data: a pickled module is refused by the name of its class.
    """
    try:
        archive = zipfile.ZipFile(path)
        (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
        require(
            archive.getinfo(pickled).file_size <= _LARGEST_PICKLE,
            f"{path} is refused: {pickled} in it unpacks to more than any checkpoint has. "
            "Take the file from its authors.",
        )
        data = archive.read(pickled)
        folder = pickled.removesuffix("data.pkl")
        is_big = _text(archive, f"{folder}byteorder") == "big"
    except UserError:
        raise
    except _FAULTS as error:
        raise UserError(
            f"{path} is damaged, or was not copied to its end ({str(error)[:80]}). Copy it again."
        ) from None
    except ValueError:
        raise UserError(
            f"{path} is a zip file, but not one of torch.save. Name the file of the weights in it."
        ) from None

    def storage(pid: Any) -> _Storage:
        is_storage = isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage"
        kind = getattr(pid[1], "dtype", None) if is_storage else None
        if not isinstance(kind, np.dtype) or not isinstance(pid[4], int):
            raise ValueError("an object that is not a tensor")
        dtype = kind.newbyteorder(">") if is_big else kind
        return _Storage(f"{folder}data/{pid[2]}", dtype, pid[4])

    def find(module: str, name: str) -> type | None:
        if module in _INERT_MODULES:
            return Inert
        return _NAMES.get(f"{module}.{name}")

    content = load_pickle(io.BytesIO(data), str(path), find=find, persistent=storage)
    weights = _weights_of(content)
    require(
        bool(weights),
        f"{path} holds no tensors under model or state_dict. "
        "Save the model's state_dict() with torch.save, and name that file.",
    )
    stored = {
        name: StoredTensor(
            tensor.shape,
            tensor.storage.dtype.name,
            lambda tensor=tensor: _read(archive, path, tensor),
        )
        for name, tensor in weights.items()
    }
    args = content.get("args") if isinstance(content, dict) else None
    args = args.fields if isinstance(args, Fields) else args
    return TorchFile(Tensors(stored), dict(args) if isinstance(args, dict) else {})


def _weights_of(content: Any) -> dict[str, _Tensor]:
    """Returns the tensors of a state dict, which may lie in what a training saved beside it."""
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        return {}
    weights = {str(name): value for name, value in content.items() if isinstance(value, _Tensor)}
    # What DistributedDataParallel puts before every name.
    if weights and all(name.startswith("module.") for name in weights):
        weights = {name.removeprefix("module."): value for name, value in weights.items()}
    return weights


def _text(archive: zipfile.ZipFile, name: str) -> str:
    return archive.read(name).decode("ascii", "replace") if name in archive.namelist() else ""


def _read(archive: zipfile.ZipFile, path: pathlib.Path, tensor: _Tensor) -> np.ndarray:
    try:
        content = archive.read(tensor.storage.key)
    except (*_FAULTS, KeyError, ValueError) as error:
        raise UserError(
            f"{path} is damaged, or was not copied to its end ({str(error)[:80]}). Copy it again."
        ) from None
    dtype = tensor.storage.dtype
    require(
        len(content) >= tensor.storage.size * dtype.itemsize,
        f"{path} is damaged: {tensor.storage.key} is too short. Copy it again.",
    )
    numbers = np.frombuffer(content, dtype)[tensor.offset :]
    strides = tuple(stride * dtype.itemsize for stride in tensor.strides)
    view = np.lib.stride_tricks.as_strided(numbers, tensor.shape, strides, writeable=False)
    return np.ascontiguousarray(view.astype(dtype.newbyteorder("=")))
