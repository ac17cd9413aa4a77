"""Splits a command line: absl takes the launch flags, tyro the values of the config's fields."""

import contextlib
import dataclasses
import difflib
import errno
import io
import os
import pathlib
import re
import runpy
import shutil
import signal
import sys
import tempfile
import traceback
import typing
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import tyro
from absl import app, flags, logging

from m3ae_tpu.config import PretrainConfig
from m3ae_tpu.errors import UserError

_CONFIGS = pathlib.Path(__file__).parent / "configs"
_HELP = {"-h", "--h", "-help", "--help"}


def run_program(main: Callable[[list[str]], None]) -> NoReturn:
    """Runs `main` as a program: parses its flags, then calls it with what is left of the command
    line.

    A `UserError` ends the program with one message on stderr and exit code 2, Ctrl-C with 130, both
    without a traceback. A program that defines a flag `config` gets overrides of the config's
    fields among its arguments; any other is given plain arguments only, and unknown flags are
    refused.
    """

    def parse(argv: list[str]) -> list[str]:
        with _plain_errors():
            return parse_launch_flags(argv, module=sys.modules[main.__module__])

    def guarded(argv: list[str]) -> None:
        # Libraries tell absl's log each of their steps; ours is set up by the programs that have
        # one.
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)
        with _plain_errors():
            main(argv)

    app.run(guarded, flags_parser=parse)


@contextlib.contextmanager
def _plain_errors():
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # `program | head` has read enough.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"error: {_explain_no_room(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def _explain_no_room(error: OSError) -> str:
    named = [flags.FLAGS[name].value for name in ("workdir", "output") if name in flags.FLAGS]
    places = [error.filename, *named, tempfile.gettempdir(), "/dev/shm"]
    folders = dict.fromkeys(str(place) for place in places if place and os.path.isdir(place))
    free = (f"{shutil.disk_usage(folder).free / 2**20:,.0f} MB in {folder}" for folder in folders)
    return f"{error.strerror}. Free: {', '.join(free)}.\nMake room, then start again: finished work is kept."


def parse_launch_flags(argv: list[str], *, module: Any) -> list[str]:
    """Gives absl the flags that it knows. Returns the program's name and the rest.

    Args:
        argv: The command line, program first.
        module: The program's module. Its docstring and its flags are what `--help` prints; in a
            program with a flag `config` the fields follow, printed by `override`.

    Raises:
        UserError: a flag with a value that it refuses, a required flag that is missing, or, in a
            program without a flag `config`, an unknown flag.
    """
    wants_help = not _HELP.isdisjoint(argv)
    takes_overrides = "config" in flags.FLAGS
    # Otherwise absl stops at the first plain word: `--num_steps 40 --workdir=w` would hide the
    # workdir.
    flags.FLAGS.set_gnu_getopt(True)
    try:
        rest = flags.FLAGS([arg for arg in argv if arg not in _HELP], known_only=True)
    except flags.Error as error:
        if not wants_help:
            _refuse_mistyped(argv)
            raise UserError(f"{error}\nSee --help.") from None
        flags.FLAGS.mark_as_parsed()  # A required flag may be missing beside --help.
        rest = argv[:1]
    if wants_help:
        print(f"{(module.__doc__ or '').strip()}\n\nlaunch flags:")
        for flag in flags.FLAGS.get_flags_for_module(_flags_owner(module)):
            print(f"  --{flag.name:<14} {flag.help} (default: {flag.default_as_str or 'none'})")
        if not takes_overrides:
            sys.exit(0)
        return [argv[0], "--help"]
    if not takes_overrides:
        for arg in rest[1:]:
            if arg.startswith("-"):
                _refuse(_name(arg), flags.FLAGS)
    return rest


def _refuse_mistyped(argv: list[str]) -> None:
    """Raises if a name is nearly a launch flag: `--workdri` is the cause where `--workdir` is
    missing.
    """
    for name in (_name(arg) for arg in argv[1:] if arg.startswith("--")):
        if name not in flags.FLAGS and difflib.get_close_matches(name, flags.FLAGS, n=1):
            _refuse(name, flags.FLAGS)


def _flags_owner(module: Any) -> str:
    """Returns the name under which absl filed the module's flags."""
    return sys.argv[0] if module.__name__ == "__main__" else module.__name__


def config_names() -> list[str]:
    """Returns the names that `--config` takes: the files of `configs/`."""
    return sorted(path.stem for path in _CONFIGS.glob("*.py") if path.stem != "__init__")


def load_config(name_or_path: str) -> PretrainConfig:
    """Returns the config `CONFIG` of a named run or of a user's own Python file of the same form.

    Args:
        name_or_path: A file of `configs/` without its `.py`, or the path of a `.py` file.

    Raises:
        UserError: there is no such config; the file raises, or has no `PretrainConfig` named
            `CONFIG`.
    """
    names = config_names()
    path = _CONFIGS / f"{name_or_path}.py" if name_or_path in names else pathlib.Path(name_or_path)
    if not path.is_file():
        near = difflib.get_close_matches(path.stem, names, n=1)
        fix = (
            f"Did you mean {near[0]}?"
            if near
            else "Give one of these names, or the path of a .py file."
        )
        what = "does not exist" if path.suffix == ".py" else "is no config"
        raise UserError(f"--config = {name_or_path} {what}. There are {', '.join(names)}. {fix}")
    if path.suffix != ".py":
        raise UserError(
            f"--config = {name_or_path} is no Python file. Give the path of a .py file."
        )
    try:
        config = runpy.run_path(str(path)).get("CONFIG")
    except (Exception, SystemExit) as error:
        raised = f"{_first_line(error)} ({_place(error, path)})"
        raise UserError(f"--config = {name_or_path} raises {raised}. Mend the file.") from error
    if not isinstance(config, PretrainConfig):
        found = "no CONFIG" if config is None else f"a CONFIG of type {type(config).__name__}"
        raise UserError(
            f"--config = {name_or_path} has {found}. Write: CONFIG = PretrainConfig(...)."
        )
    return config


def _first_line(error: BaseException) -> str:
    message = error.msg if isinstance(error, SyntaxError) else str(error)
    return f"{type(error).__name__}: {message.splitlines()[0] if message else 'no message'}"


def _place(error: BaseException, path: pathlib.Path) -> str:
    """Returns the line of `path` on which `error` arose, or of the file that could not be parsed."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}"
    frames = [
        frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
    ]
    return f"{path}, line {frames[-1].lineno}" if frames else str(path)


def override[Config](config: Config, args: list[str]) -> Config:
    """Returns `config` with the fields named in `args` (`--model.encoder.num_layers=4`) replaced.

    All values are put in place before anything is checked, so that fields which depend on each
    other can change together. With `--help` prints every field with explanation and value, and
    exits.

    Args:
        config: Any tree of dataclasses; those in a tuple are numbered: `data.sources.0.weight`.
        args: `--field=value` or `--field value [value ...]`, in any order; the last one of a field
            counts.

    Raises:
        UserError: no such field, a value of the wrong type, or one that the config refuses.
    """
    options = (tyro.conf.FlagConversionOff,)
    if "--help" in args:
        print()
        prog = pathlib.Path(sys.argv[0]).name
        tyro.cli(
            type(config),
            default=config,
            args=["--help"],
            prog=prog,
            use_underscores=True,
            config=options,
        )
    types = field_types(config)
    changes = {}
    for name, values in _grouped(args):
        if name not in types:
            _refuse(name, [*types, *flags.FLAGS])
        one_field = dataclasses.make_dataclass("OneField", [("value", types[name])])
        try:
            # tyro's own message is a box of up to ten lines; the one below says the same in one.
            with contextlib.redirect_stderr(io.StringIO()):
                parsed = tyro.cli(
                    one_field, args=["--value", *values], config=options, add_help=False
                )
        except SystemExit:
            raise UserError(
                f"--{name} = {' '.join(values) or '(nothing)'} is no {_type_name(types[name])}. "
                f"The config has {_current(config, name)!r}."
            ) from None
        changes[name] = parsed.value
    return _replaced(config, changes, path="")


def _grouped(args: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Joins each `--name` with its values: those behind its `=`, or the plain words that follow."""
    groups: list[tuple[str, list[str]]] = []
    for arg in args:
        if re.match(r"--?[A-Za-z_]", arg):
            _, equals, value = arg.partition("=")
            groups.append((_name(arg), [value] if equals else []))
        elif groups:
            groups[-1][1].append(arg)
        else:
            raise UserError(
                f"argument {arg!r} belongs to no flag. Write --config={arg}, or --FIELD={arg}."
            )
    return groups


def _name(arg: str) -> str:
    return arg.lstrip("-").partition("=")[0].replace("-", "_")


def _refuse(name: str, known: Iterable[str]) -> NoReturn:
    near = difflib.get_close_matches(name, list(known), n=1)
    if not near:  # `--num_layers` alone: the leaf is right, the path before it is missing.
        near = [full for full in known if full.rpartition(".")[2] == name.rpartition(".")[2]][:1]
    fix = f"Did you mean --{near[0]}?" if near else "See --help."
    raise UserError(f"--{name} is neither a launch flag nor a field of the config. {fix}")


def field_types(config: Any) -> dict[str, Any]:
    """Returns the type of every leaf field of a nested config by its dotted name."""
    types = {}
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        children = _children(field.name, getattr(config, field.name))
        for name, child in children.items():
            types |= {f"{name}.{leaf}": hint for leaf, hint in field_types(child).items()}
        if not children:
            types[field.name] = hints[field.name]
    return types


def _children(name: str, value: Any) -> dict[str, Any]:
    """Returns the dataclasses that a field holds, by the field's name, or its name and their
    number.
    """
    if dataclasses.is_dataclass(value):
        return {name: value}
    if isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
        return {f"{name}.{number}": child for number, child in enumerate(value)}
    return {}


def _replaced[Node](node: Node, changes: dict[str, Any], *, path: str) -> Node:
    """Returns `node` with the fields of `changes` (dotted names seen from it) replaced, bottom up."""
    new: dict[str, Any] = {}
    for field in dataclasses.fields(node):  # pyright: ignore[reportArgumentType]  # A dataclass, by `override`.
        value = getattr(node, field.name)
        children = []
        for name, child in _children(field.name, value).items():
            start = f"{name}."
            below = {
                full.removeprefix(start): changes[full]
                for full in changes
                if full.startswith(start)
            }
            children.append(_replaced(child, below, path=path + start) if below else child)
        if children:
            new[field.name] = tuple(children) if isinstance(value, tuple) else children[0]
        elif field.name in changes:
            new[field.name] = changes[field.name]
    try:
        return dataclasses.replace(node, **new)  # pyright: ignore[reportArgumentType]
    except UserError as error:
        # Parts that occur more than once, like the two Transformers, do not know where they hang.
        known = str(error).startswith(path.split(".")[0])
        raise UserError(str(error) if known else f"{path.rstrip('.')}: {error}") from None


def _current(config: Any, name: str) -> Any:
    value = config
    for part in name.split("."):
        value = value[int(part)] if part.isdigit() else getattr(value, part)
    return value


def _type_name(hint: Any) -> str:
    """Returns a type as a user would say it."""
    if isinstance(hint, typing.TypeAliasType):
        hint = hint.__value__
    if typing.get_origin(hint) is typing.Literal:
        return f"choice of {', '.join(map(str, typing.get_args(hint)))}"
    if typing.get_origin(hint) is tuple:
        return f"row of {len(typing.get_args(hint))} numbers"
    return {int: "whole number", float: "number", bool: "True or False", str: "text"}.get(
        hint, str(hint)
    )
