"""Flags for the fields of a dataclass of options: name, type, default and help are the field's."""

import ast
import dataclasses
import inspect
import itertools
import textwrap
import typing
from collections.abc import Callable
from typing import Any

from absl import flags

# The flags belong to the module that calls `define_flags`, whose --help shows them.
flags.disclaim_key_flags()


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
            flag = _define(field.name, hint, field.default, docs[field.name])
            values[field.name] = lambda flag=flag: flag.value
    return lambda: options(**{name: value() for name, value in values.items()})


def _define(name: str, hint: Any, default: Any, doc: str) -> flags.FlagHolder[Any]:
    if isinstance(hint, typing.TypeAliasType):
        hint = hint.__value__
    if typing.get_origin(hint) is typing.Literal:
        return flags.DEFINE_enum(name, default, typing.get_args(hint), doc)
    define = {
        bool: flags.DEFINE_bool,
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        str: flags.DEFINE_string,
    }
    return define[hint](name, default, doc)


def _field_docs(options: type) -> dict[str, str]:
    """Returns the docstring of each field of a dataclass, on one line."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(options))).body
    assert isinstance(definition, ast.ClassDef)
    return {
        ast.unparse(field.target): " ".join(str(ast.literal_eval(doc.value)).split())
        for field, doc in itertools.pairwise(definition.body)
        if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr)
    }
