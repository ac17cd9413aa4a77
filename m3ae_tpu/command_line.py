"""Programs: their launch flags are parsed, and their errors end in one message."""

import contextlib
import difflib
import errno
import importlib.util
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from absl import app, flags, logging

from m3ae_tpu.errors import UserError, require
from m3ae_tpu.files import Place, place, printable
from m3ae_tpu.values import as_typed

_HELP = {"-h", "--h", "-help", "--help"}


def run_program(main: Callable[[list[str]], None], *, command: list[str] | None = None) -> NoReturn:
    """Runs `main` as a program: parses its launch flags, then calls it with the other arguments.

    A `UserError` ends the program with one message on stderr and exit code 2, Ctrl-C with 130, both
    without a traceback. A program that defines a flag `config` also accepts fields of the config
    (`--seed=1`), which `main` gets as they are. Any other program refuses unknown flags.

    Args:
        main: Takes the program's name and the words that belong to no flag.
        command: A list that gets the words after `--`, another program's. None: this program takes
            no such words.
    """

    _expect_no_cuda()
    for stream in (sys.stdout, sys.stderr):
        # Names of files may hold bytes that are not UTF-8.
        stream.reconfigure(errors="backslashreplace")  # pyright: ignore

    def parse(argv: list[str]) -> list[str]:
        if command is not None and "--" in argv:
            place = argv.index("--")
            argv, command[:] = argv[:place], argv[place + 1 :]
        with _plain_errors():
            return parse_launch_flags(argv, module=sys.modules[main.__module__])

    def guarded(argv: list[str]) -> None:
        # Orbax logs its steps through absl, at level INFO.
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)
        with _plain_errors():
            main(argv)

    app.run(guarded, flags_parser=parse)


def _expect_no_cuda() -> None:
    """Keeps JAX from printing a traceback at every start where CUDA's compiler alone is installed.

    It checks the versions of CUDA's libraries before it looks for a GPU.
    """
    if _is_installed("jax_plugins.xla_cuda13") and not _is_installed("nvidia.cudnn"):
        os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")


def _is_installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # Its parent is missing.
        return False


@contextlib.contextmanager
def _plain_errors():
    try:
        yield
    except UserError as error:
        _end_with(f"error: {error}", 2)
    except BrokenPipeError:  # The reader of `program | head` has gone.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            _end_with(f"error: {_full_disk_message(error)}", 2)
        if error.filename is None:  # Not about a file: its place in the code is needed.
            raise
        _end_with(
            f"error: {error.filename} cannot be used ({error.strerror}). "
            "Check that it exists, and that you may read and write there.",
            2,
        )
    except KeyboardInterrupt:
        _end_with("stopped by Ctrl-C", 128 + signal.SIGINT)


def _end_with(message: str, exit_code: int) -> NoReturn:
    print("\n".join(map(printable, message.split("\n"))), file=sys.stderr)
    sys.exit(exit_code)


def _full_disk_message(error: OSError) -> str:
    named = [flags.FLAGS[name].value for name in ("workdir", "output") if name in flags.FLAGS]
    places = [error.filename, *named, tempfile.gettempdir(), "/dev/shm"]
    folders = dict.fromkeys(str(place) for place in places if place and os.path.isdir(place))
    free = (f"{shutil.disk_usage(folder).free / 2**20:,.0f} MB in {folder}" for folder in folders)
    return (
        f"{error.strerror}. Free: {', '.join(free)}.\n"
        "Make room, then start again: finished work is kept."
    )


def parse_launch_flags(argv: list[str], *, module: Any) -> list[str]:
    """Parses the launch flags that absl knows. Returns the program's name and the other arguments.

    Args:
        argv: The command line, program first.
        module: The program's module: `--help` prints its docstring and its flags. In a program with
            a flag `config` the fields follow, printed by `override`.

    Raises:
        UserError: a flag with a wrong value, a required flag that is missing, or, in a program
            without a flag `config`, an unknown flag.
    """
    wants_help = not _HELP.isdisjoint(argv)
    takes_overrides = "config" in flags.FLAGS
    # Otherwise absl stops at the first plain word: `--num_steps 40 --workdir=w` would hide the
    # workdir.
    flags.FLAGS.set_gnu_getopt(True)
    try:
        argv = flags.FLAGS.read_flags_from_files(argv, force_gnu=True)
        rest = flags.FLAGS(
            [_as_defined(arg) for arg in argv if arg not in _HELP | {"--"}], known_only=True
        )
    except flags.Error as error:
        if not wants_help:
            if isinstance(error.__context__, UserError):  # A parser's own message.
                raise error.__context__ from None
            _refuse_mistyped(argv)
            message = str(error).removeprefix("ERROR:: ")
            raise UserError(_missing_flags(str(error)) or f"{message}. See --help.") from None
        flags.FLAGS.mark_as_parsed()  # A required flag may be missing beside --help.
        rest = argv[:1]
    if wants_help:
        print(f"{(module.__doc__ or '').strip()}\n\nlaunch flags:")
        own = flags.FLAGS.get_flags_for_module(_flags_owner(module))
        width = max((len(flag.name) for flag in own), default=0)
        for flag in own:
            default = "none" if flag.default in (None, "", []) else as_typed(flag.default)
            # No flag has another validator than that it is required.
            note = "required" if flag.validators else f"default: {default}"
            print(f"  --{flag.name:<{width}}  {flag.help} ({note})")
        if not takes_overrides:
            sys.exit(0)
        return [argv[0], "--help"]
    if not takes_overrides:
        for arg in rest[1:]:
            if arg.startswith("-"):
                refuse_flag(typed_name(arg), flags.FLAGS)
    return rest


def _as_defined(arg: str) -> str:
    """Returns a launch flag with the underscores of its name, where a user typed dashes."""
    if not arg.startswith("-"):
        return arg
    name, equals, value = arg.partition("=")
    name = flag_name(name)
    negated = name.removeprefix("no").removeprefix("_")
    if name not in flags.FLAGS and negated in flags.FLAGS and flags.FLAGS[negated].boolean:
        name = f"no{negated}"
    elif name not in flags.FLAGS:
        return arg
    return f"--{name}{equals}{value}"


def _missing_flags(message: str) -> str:
    """Returns a message of our own for absl's about required flags, "" for another."""
    names = re.findall(r"Flag --(\w+) must have a value", message)
    return "\n".join(
        f"--{name} is missing. Write --{name}=...: {flags.FLAGS[name].help}" for name in names
    )


def _refuse_mistyped(argv: list[str]) -> None:
    """Raises if a name resembles a launch flag: `--workdri` explains a missing `--workdir`."""
    for arg in argv[1:]:
        name = flag_name(arg)
        is_known = name in flags.FLAGS or name.removeprefix("no") in flags.FLAGS
        if arg.startswith("--") and not is_known and _nearest(name, flags.FLAGS):
            refuse_flag(typed_name(arg), flags.FLAGS)


def _flags_owner(module: Any) -> str:
    """Returns the name under which absl keeps the module's flags."""
    return sys.argv[0] if module.__name__ == "__main__" else module.__name__


def typed_name(arg: str) -> str:
    """Returns the name in an argument as typed: `batch-size` of `--batch-size=8`."""
    return arg.lstrip("-").partition("=")[0]


def flag_name(arg: str) -> str:
    """Returns the name in an argument with underscores: `batch_size` of `--batch-size=8`."""
    return typed_name(arg).replace("-", "_")


def refuse_flag(
    name: str, valid_names: Iterable[str], *, problem: str = "is not a flag of this program"
) -> NoReturn:
    """Raises `UserError` for an unknown name, as typed, with the nearest of the valid ones."""
    near = _nearest(name.replace("-", "_"), valid_names)
    raise UserError(
        f"--{name} {problem}. " + (f"Did you mean --{near}?" if near else "See --help.")
    )


def _nearest(name: str, valid_names: Iterable[str]) -> str:
    """Returns the valid name that resembles a name most, or "" if none does."""
    names = list(valid_names)
    near = difflib.get_close_matches(name, names, n=1)
    if not near:  # `--num_layers` alone: the leaf is right, the path before it is missing.
        near = [full for full in names if full.rpartition(".")[2] == name.rpartition(".")[2]]
    return near[0] if near else ""


def one_place(argv: list[str], flag_value: Place | None, usage: str) -> Place:
    """Returns the one file or folder that a command line names, by a word or by a flag.

    Args:
        argv: The program's name and the words that belong to no flag.
        flag_value: The flag's value.
        usage: The command line to show.

    Raises:
        UserError: none is named, or several are.
    """
    named = [*argv[1:], *([str(flag_value)] if flag_value else [])]
    given = f", not {len(named)} ({' '.join(named)})" if named else ""
    require(len(named) == 1, f"Name one folder{given}: {usage}.")
    return place(usage.split()[-1], named[0])
