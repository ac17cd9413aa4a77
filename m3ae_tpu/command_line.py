"""Programs: their launch flags are parsed, and their errors end in one message."""

import contextlib
import difflib
import errno
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

from absl import app, flags, logging

from m3ae_tpu.errors import UserError

_HELP = {"-h", "--h", "-help", "--help"}


def run_program(main: Callable[[list[str]], None]) -> NoReturn:
    """Runs `main` as a program: parses its launch flags, then calls it with the other arguments.

    A `UserError` ends the program with one message on stderr and exit code 2, Ctrl-C with 130, both
    without a traceback. A program that defines a flag `config` also accepts fields of the config
    (`--seed=1`), which `main` gets as they are. Any other program refuses unknown flags.
    """

    def parse(argv: list[str]) -> list[str]:
        with _plain_errors():
            return parse_launch_flags(argv, module=sys.modules[main.__module__])

    def guarded(argv: list[str]) -> None:
        # Orbax logs its steps through absl, at level INFO.
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
    except BrokenPipeError:  # The reader of `program | head` has gone.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print(f"error: {_full_disk_message(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


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
        rest = flags.FLAGS([arg for arg in argv if arg not in _HELP], known_only=True)
    except flags.Error as error:
        if not wants_help:
            _refuse_mistyped(argv)
            raise UserError(f"{error}\nSee --help.") from None
        flags.FLAGS.mark_as_parsed()  # A required flag may be missing beside --help.
        rest = argv[:1]
    if wants_help:
        print(f"{(module.__doc__ or '').strip()}\n\nlaunch flags:")
        own = flags.FLAGS.get_flags_for_module(_flags_owner(module))
        width = max((len(flag.name) for flag in own), default=0)
        for flag in own:
            default = flag.default_as_str or "none"
            print(f"  --{flag.name:<{width}}  {flag.help} (default: {default})")
        if not takes_overrides:
            sys.exit(0)
        return [argv[0], "--help"]
    if not takes_overrides:
        for arg in rest[1:]:
            if arg.startswith("-"):
                refuse_flag(flag_name(arg), flags.FLAGS)
    return rest


def _refuse_mistyped(argv: list[str]) -> None:
    """Raises if a name resembles a launch flag: `--workdri` explains a missing `--workdir`."""
    for name in (flag_name(arg) for arg in argv[1:] if arg.startswith("--")):
        if name not in flags.FLAGS and difflib.get_close_matches(name, flags.FLAGS, n=1):
            refuse_flag(name, flags.FLAGS)


def _flags_owner(module: Any) -> str:
    """Returns the name under which absl keeps the module's flags."""
    return sys.argv[0] if module.__name__ == "__main__" else module.__name__


def flag_name(arg: str) -> str:
    """Returns the name in an argument: `batch_size` of `--batch-size=8`."""
    return arg.lstrip("-").partition("=")[0].replace("-", "_")


def refuse_flag(
    name: str, valid_names: Iterable[str], *, problem: str = "is not a flag of this program"
) -> NoReturn:
    """Raises `UserError` for an unknown name, with the nearest of the valid ones."""
    names = list(valid_names)
    near = difflib.get_close_matches(name, names, n=1)
    if not near:  # `--num_layers` alone: the leaf is right, the path before it is missing.
        near = [full for full in names if full.rpartition(".")[2] == name.rpartition(".")[2]][:1]
    fix = f"Did you mean --{near[0]}?" if near else "See --help."
    raise UserError(f"--{name} {problem}. {fix}")
