"""Named configs, and the values of their fields that a command line replaces."""

import contextlib
import difflib
import pathlib
import re
import runpy
import sys
import tempfile
import traceback
from collections.abc import Iterable
from typing import Any

import tyro
from absl import flags

from m3ae_tpu.command_line import flag_name, refuse_flag, typed_name
from m3ae_tpu.config.tree import leaf_types, leaves, replaced
from m3ae_tpu.errors import UserError
from m3ae_tpu.files import is_remote, local_path
from m3ae_tpu.storage.places import read_bytes
from m3ae_tpu.values import as_typed, parse_value, type_phrase

_CONFIGS = pathlib.Path(__file__).parent / "configs"


def config_names() -> list[str]:
    """Returns the names that `--config` takes: the files of `configs/`."""
    return sorted(path.stem for path in _CONFIGS.glob("*.py") if path.stem != "__init__")


def load_named_config[Config](name_or_path: str, config_type: type[Config]) -> Config:
    """Returns the config `CONFIG` of a named run, or of a user's own Python file of the same form.

    Args:
        name_or_path: A file of `configs/` without its `.py`, or the path of a `.py` file, also in a
            bucket.
        config_type: Type that `CONFIG` must have.

    Raises:
        UserError: there is no such config; the file raises, or has no `CONFIG` of this type.
    """
    if is_remote(name_or_path):
        with tempfile.TemporaryDirectory() as folder:
            copy = pathlib.Path(folder) / name_or_path.rpartition("/")[2]
            with contextlib.suppress(FileNotFoundError):  # Then the copy is missing too.
                copy.write_bytes(read_bytes(name_or_path))
            return _load(name_or_path, copy, config_type)
    path = _CONFIGS / f"{name_or_path}.py"
    if name_or_path not in config_names():
        path = local_path("--config", name_or_path)
    return _load(name_or_path, path, config_type)


def _load[Config](name_or_path: str, path: pathlib.Path, config_type: type[Config]) -> Config:
    """Returns the config in a local file, which is called `name_or_path` in messages."""
    names = config_names()
    if not path.is_file():
        near = difflib.get_close_matches(path.stem, names, n=1)
        fix = f"Did you mean {near[0]}?" if near else "Give a name, or the path of a .py file."
        problem = "does not exist" if path.suffix == ".py" else "is not the name of a config"
        raise UserError(f"--config = {name_or_path} {problem}. Names: {', '.join(names)}. {fix}")
    if path.suffix != ".py":
        raise UserError(
            f"--config = {name_or_path} is not a Python file. Give the path of a .py file."
        )
    try:
        config = runpy.run_path(str(path)).get("CONFIG")
    except (Exception, SystemExit) as error:
        raised = f"{_first_line(error)} ({_place(error, path)})"
        raise UserError(f"--config = {name_or_path} raises {raised}. Correct the file.") from error
    if not isinstance(config, config_type):
        found = "no CONFIG" if config is None else f"a CONFIG of type {type(config).__name__}"
        raise UserError(
            f"--config = {name_or_path} has {found}. Write: CONFIG = {config_type.__name__}(...)."
        )
    return config


def _first_line(error: BaseException) -> str:
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {message.splitlines()[0] if message else 'no message'}"


def _place(error: BaseException, path: pathlib.Path) -> str:
    """Returns the line of `path` on which `error` arose, or that of the syntax error."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}"
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
    ]
    return f"{path}, line {frames[-1].lineno}" if frames else str(path)


def override[Config](config: Config, args: list[str]) -> Config:
    """Returns `config` with the fields named in `args` (`--model.encoder.num_layers=4`) replaced.

    With `--help` prints every field with its explanation and value, and exits.

    Args:
        config: Any tree of dataclasses; those in a tuple are numbered: `data.sources.0.weight`.
        args: `--field=value` or `--field value [value ...]`, in any order; the last one of a field
            counts.

    Raises:
        UserError: no such field, a value of the wrong type, or one that the config refuses.
    """
    if "--help" in args:
        _print_fields(config)
    types = leaf_types(config)
    changes = {}
    for typed, words in _grouped(args):
        name = flag_name(typed)
        if name not in types:
            problem = "is neither a launch flag nor a field of the config"
            refuse_flag(typed, [*types, *flags.FLAGS], problem=problem)
        try:
            changes[name] = parse_value(types[name], words)
        except (ValueError, OverflowError):
            given, value = " ".join(words) or "(nothing)", leaves(config)[name]
            raise UserError(
                f"--{typed} = {given} is not {type_phrase(types[name])}. "
                f"The config has {value!r}: --{name}={as_typed(value)}."
            ) from None
    return replaced(config, changes)


def _print_fields(config: Any) -> None:
    """Prints name, type, explanation and value of every field, and exits."""
    print()
    tyro.cli(
        type(config),
        default=config,
        args=["--help"],
        prog=pathlib.Path(sys.argv[0]).name,
        use_underscores=True,
        config=(tyro.conf.FlagConversionOff,),
    )


def _grouped(args: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Joins each name, as typed, with its values: the text after its `=`, or the words behind."""
    groups: list[tuple[str, list[str]]] = []
    for arg in args:
        if re.match(r"--?[A-Za-z_]", arg):
            _, equals, value = arg.partition("=")
            groups.append((typed_name(arg), [value] if equals else []))
        elif groups:
            groups[-1][1].append(arg)
        else:
            raise UserError(
                f"argument {arg!r} belongs to no flag. Write --config={arg}, or --FIELD={arg}."
            )
    return groups
