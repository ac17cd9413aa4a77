"""Launch flags of programs: one at a time, or one for each field of a dataclass of options."""

import ast
import csv
import dataclasses
import inspect
import itertools
import pathlib
import textwrap
import types
import typing
from collections.abc import Callable
from typing import Any

from absl import flags

from m3ae_tpu.errors import UserError
from m3ae_tpu.files import Place, local_path, place
from m3ae_tpu.values import as_typed, choices_of, parse_value, type_phrase

# A flag belongs to the module that calls `define_flag` or `define_flags`, whose --help shows it.
flags.disclaim_key_flags()


def define_flag(
    name: str,
    hint: Any,
    default: Any,
    doc: str,
    *,
    at_least: float | None = None,
    required: bool = False,
) -> flags.FlagHolder[Any]:
    """Defines a launch flag.

    Args:
        name: Its name, with underscores; users may type dashes.
        hint: Type of its value: `bool`, `int`, `float`, `str`, a `Literal`, `list` for texts that
            are separated by commas (a text that holds one goes in double quotes), or
            `pathlib.Path` for a local file or folder, None if empty; `Place` for one that may lie
            in a bucket.
        default: Its value if it is not given.
        doc: Its help.
        at_least: The smallest number.
        required: Whether it must be given.
    """
    parser = _Parser(name, hint, default, at_least)
    if choices := choices_of(hint):
        doc = f"<{'|'.join(choices)}>: {doc}"
    if hint is bool:
        flag: flags.Flag = flags.BooleanFlag(name, default, doc)
        flag.parser = parser
    else:
        flag = (_ListFlag if hint is list else flags.Flag)(parser, None, name, default, doc)
    return flags.DEFINE_flag(flag, required=required)


class _Parser(flags.ArgumentParser):
    """Parser of a flag's value, whose messages name the flag, the value and the fix."""

    def __init__(self, name: str, hint: Any, default: Any, at_least: float | None):
        self._name, self._hint, self._default = name, hint, default
        self._at_least = at_least

    def parse(self, argument: Any) -> Any:
        if not isinstance(argument, str):
            return argument
        if self._hint is list:
            parts = next(csv.reader([argument], skipinitialspace=True), [])
            return [part.strip() for part in parts if part.strip()]
        if self._hint is pathlib.Path:
            return local_path(f"--{self._name}", argument) if argument else None
        if self._hint is Place:
            return place(f"--{self._name}", argument) if argument else None
        try:
            value = parse_value(self._hint, [argument])
        except (ValueError, OverflowError):
            raise UserError(
                f"--{self._name} = {argument or '(nothing)'} is not {type_phrase(self._hint)}. "
                f"{self._example()}"
            ) from None
        if self._at_least is not None and not value >= self._at_least:
            raise UserError(
                f"--{self._name} = {argument} is less than {self._at_least}. {self._example()}"
            )
        return value

    def flag_type(self) -> str:
        return getattr(self._hint, "__name__", str(self._hint))

    def _example(self) -> str:
        default = self._default
        return "See --help." if default is None else f"Default: --{self._name}={as_typed(default)}."


class _ListFlag(flags.Flag):
    """Flag of a list, which adds to the list where it is given again."""

    def parse(self, argument: Any) -> None:
        given = self.value if self.present else []
        super().parse(argument)
        self.value = [*(given or []), *(self.value or [])]


def define_flags[Options](options: type[Options]) -> Callable[[], Options]:
    """Defines a flag for each field of a dataclass, and for those of dataclasses in it.

    The docstring below a field is the flag's help.

    Returns:
        A function that makes the dataclass from the values of the flags, after these were parsed.
    """
    hints, docs = typing.get_type_hints(options), _field_docs(options)
    values: dict[str, Callable[[], Any]] = {}
    for field in dataclasses.fields(options):  # pyright: ignore[reportArgumentType]
        hint = hints[field.name]
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            values[field.name] = define_flags(hint)
        else:
            flag = define_flag(field.name, _without_none(hint), field.default, docs[field.name])
            values[field.name] = lambda flag=flag: flag.value
    return lambda: options(**{name: value() for name, value in values.items()})


def _without_none(hint: Any) -> Any:
    """Returns the type of a value that is given, where None stands for one that is not."""
    if isinstance(hint, types.UnionType):
        (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
    return hint


def _field_docs(options: type) -> dict[str, str]:
    """Returns the docstring of each field of a dataclass, on one line."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(options))).body
    assert isinstance(definition, ast.ClassDef)
    return {
        ast.unparse(field.target): " ".join(str(ast.literal_eval(doc.value)).split())
        for field, doc in itertools.pairwise(definition.body)
        if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr)
    }
