"""Pickles read without running anything: every name in them is looked up in a table of ours.

An ordinary unpickler imports modules and calls functions that the file names. This one knows a few
names, each with a class of ours; other names are refused before anything is made of them.
"""

import functools
import io
import pickle
import pickletools
from collections.abc import Callable
from typing import IO, Any, NoReturn, cast

import jax.numpy as jnp
import numpy as np

from m3ae_tpu.errors import UserError

_MAX_STEPS, _MAX_TUPLES = 5_000_000, 50_000
"""Far more than any checkpoint has. Python takes the hash of a tuple in a tuple in a tuple ... on
its stack, which ends at some hundred thousand."""
_REFUSED_STEPS = {"PERSID", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"}
# What the standard unpickler raises for pickles that are damaged or make no sense.
_FAULTS = (
    pickle.UnpicklingError,
    ArithmeticError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    RecursionError,
    SyntaxError,
    TypeError,
    ValueError,
)


class Inert:
    """Stands for an object of a library that is not loaded: takes everything, keeps nothing."""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> Any:
        return super().__new__(cls)

    def __init__(self, *_args: Any, **_kwargs: Any):
        pass

    def __call__(self, *_args: Any, **_kwargs: Any) -> "Inert":
        return Inert()

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, _item: Any) -> None:
        """Takes an item of a list."""

    def extend(self, _items: Any) -> None:
        """Takes items of a list."""

    def add(self, _item: Any) -> None:
        """Takes an item of a set."""


class Fields(Inert):
    """Stands for an object whose fields count; they are kept under their names."""

    fields: dict[str, Any]

    def __new__(cls, *_args: Any, **fields: Any) -> Any:
        made = super().__new__(cls)
        made.fields = fields
        return made

    def __setstate__(self, state: Any) -> None:
        # An object with slots has two dictionaries, and either may be None.
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict):
                self.fields |= part


class MadeClass(Inert):
    """Stands for a function that makes a class from what the pickle says of it."""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> Any:
        return Fields


class Dictionary(dict[Any, Any]):
    """Stands for dictionaries of other classes, such as flax's FrozenDict."""

    def __new__(cls, *args: Any) -> Any:
        # Not copied: a small pickle may name one large dictionary again and again.
        if args and not isinstance(args[0], dict):
            _refuse("a dictionary that is not made of a dictionary")
        return args[0] if args else super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        for part in state if isinstance(state, tuple) else (state,):
            if isinstance(part, dict) and isinstance(part.get("_dict"), dict):
                self.update(part["_dict"])


class Dtype(Inert):
    """Stands for `numpy.dtype`, and for the scalar types that one can be made of."""

    def __init__(self, name: Any = None, *_args: Any):
        if isinstance(name, type) and issubclass(name, Dtype):  # The type of ml_dtypes.
            self.dtype = np.dtype(jnp.bfloat16)
            return
        if not isinstance(name, str):
            _refuse("a dtype that is not a number's")
        self.dtype = np.dtype(name)
        if self.dtype.hasobject or self.dtype.names or self.dtype.subdtype:
            _refuse(f"an array of {name[:30]}: no numbers")

    def __setstate__(self, state: Any) -> None:
        is_swapped = isinstance(state, tuple) and len(state) > 1 and state[1] == ">"
        self.dtype = self.dtype.newbyteorder(">") if is_swapped else self.dtype


class Scalar(Inert):
    """Stands for `numpy.core.multiarray.scalar`: a number of one dtype."""

    def __new__(cls, dtype: Any, data: Any = b"") -> Any:
        return _from_bytes(data, dtype, ())[()]


class BufferArray(Inert):
    """Stands for `numpy.core.numeric._frombuffer`: an array of the bytes beside it."""

    def __new__(cls, data: Any, dtype: Any, shape: Any, order: Any = "C") -> Any:
        return _from_bytes(data, dtype, shape, order)


class StateArray(Inert):
    """Stands for `numpy.core.multiarray._reconstruct`: an array that gets its values later."""

    def __init__(self, *_args: Any):
        self.array: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, is_fortran, data = state
        self.array = _from_bytes(data, dtype, shape, "F" if is_fortran else "C")


class EncodedBytes(Inert):
    """Stands for `_codecs.encode`, by which pickles of old protocols keep bytes."""


def _encoded(text: Any, encoding: Any = "") -> bytes:
    if not isinstance(text, str) or encoding != "latin1":
        _refuse("bytes in an encoding of their own")
    return text.encode("latin1")


class Reconstructed(Inert):
    """Stands for `copyreg._reconstructor`, by which old protocols make an object of a class."""

    def __new__(cls, made: Any, *_facts: Any) -> Any:
        if not (isinstance(made, type) and issubclass(made, Inert)):
            _refuse("an object of a class of Python's own")
        return made()


class DeviceArray(Inert):
    """Stands for jax's functions that make a device array of a NumPy one and facts about it."""

    def __new__(cls, make: Any, args: Any, state: Any, *_facts: Any) -> Any:
        if not (isinstance(make, type) and issubclass(make, StateArray)):
            _refuse("a device array that is not made of a NumPy array")
        array = StateArray()
        array.__setstate__(state)
        return array


class ArrayType(Inert):
    """Stands for `numpy.ndarray`, an argument of `_reconstruct`."""


class BFloat16(Dtype):
    """Stands for `ml_dtypes.bfloat16`."""


_NUMPY_MODULES = ("numpy.core", "numpy._core")
NUMPY_NAMES: dict[str, type] = {
    "numpy.dtype": Dtype,
    "numpy.ndarray": ArrayType,
    "ml_dtypes.bfloat16": BFloat16,
    "_codecs.encode": EncodedBytes,
    "copyreg._reconstructor": Reconstructed,
    "collections.OrderedDict": Dictionary,
    **{
        f"{module}.{name}": stub
        for module in _NUMPY_MODULES
        for name, stub in (
            ("numeric._frombuffer", BufferArray),
            ("multiarray._reconstruct", StateArray),
            ("multiarray.scalar", Scalar),
        )
    },
}
"""Names that arrays, numbers and plain objects are pickled with."""
_OLD_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}
"""Names of Python 2, which protocols 0 to 2 keep."""


def load_pickle(
    file: io.BufferedIOBase,
    name: str,
    *,
    find: Callable[[str, str], type | None],
    persistent: Callable[[Any], Any] | None = None,
) -> Any:
    """Reads a pickle; nothing that it names is imported or called.

    Args:
        file: Seekable, at the pickle's start; read twice.
        name: The file's, for messages.
        find: Returns a class for a name by module and name in it, or None to refuse it. The class
            takes what the pickle does with the object, as those of this module do.
        persistent: Makes an object of a persistent id; None refuses pickles that have one.

    Raises:
        UserError: a name is refused, or the pickle is damaged, cut off or makes no sense.
    """
    start = file.tell()
    # The same text gives the same bytes: a small pickle may name a large text again and again.
    encoded = functools.cache(_encoded)

    class Unpickler(pickle.Unpickler):
        def find_class(self, module_name: str, global_name: str, /) -> Any:
            stub = find(_OLD_MODULES.get(module_name, module_name), global_name)
            if stub is None:
                where = f"{module_name}.{global_name}"
                _refuse(f"{where[:100]}, which no checkpoint of this format needs")
            return encoded if stub is EncodedBytes else stub

        def persistent_load(self, pid: Any, /) -> Any:
            if persistent is None:
                _refuse("objects that lie outside of it (persistent ids)")
            return persistent(pid)

    try:
        _require_sane(file, has_persistent=persistent is not None)
        file.seek(start)
        return Unpickler(file).load()
    except UserError as error:
        raise UserError(
            f"{name} is refused, and nothing in it was run: it holds {error}. "
            "Take the file from its authors."
        ) from None
    except _FAULTS as error:
        raise UserError(
            f"{name} is not a pickle, is damaged, or was not copied to its end "
            f"({type(error).__name__}: {str(error)[:80]}). Copy it again."
        ) from None


def array_of(value: Any) -> np.ndarray | None:
    """Returns the array that a pickle held, or None for any other value."""
    value = value.array if isinstance(value, StateArray) else value
    if isinstance(value, np.ndarray):
        return value
    return np.asarray(value) if isinstance(value, np.generic) else None


def _require_sane(file: io.BufferedIOBase, *, has_persistent: bool) -> None:
    """Reads a pickle's steps without doing them.

    Raises:
        UserError: a step that no checkpoint needs, or more of them than any has.
        ValueError: the pickle has no end, or a step that does not exist.
    """
    refused = _REFUSED_STEPS if has_persistent else _REFUSED_STEPS | {"BINPERSID"}
    num_tuples = 0
    for number, (step, argument, _) in enumerate(pickletools.genops(cast(IO[bytes], file))):
        if step.name in refused:
            _refuse(f"a step {step.name}, as no checkpoint of this format has")
        num_tuples += step.name.startswith("TUPLE")
        if num_tuples > _MAX_TUPLES or number > _MAX_STEPS:
            _refuse("far more steps than a checkpoint of this format has")
        if step.name in ("PUT", "LONG_BINPUT") and int(argument or 0) > _MAX_STEPS:
            _refuse("a memory place that no checkpoint of this format needs")


def _from_bytes(data: Any, dtype: Any, shape: Any, order: Any = "C") -> np.ndarray:
    if not isinstance(dtype, Dtype) or not isinstance(data, bytes | bytearray):
        _refuse("an array that is not made of bytes")
    if not isinstance(shape, tuple) or not all(type(size) is int for size in shape):
        _refuse("an array without a shape")
    order = "F" if order == "F" else "C"
    # NumPy refuses buffers of no bytes.
    array = np.frombuffer(data, dtype.dtype) if data else np.zeros(0, dtype.dtype)
    return array.reshape(shape, order=order)


def _refuse(what: str) -> NoReturn:
    raise UserError(what)
