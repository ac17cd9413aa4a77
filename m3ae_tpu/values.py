"""Values as people type them on a command line: numbers, choices, texts, and tuples of them."""

import re
import types
import typing
from collections.abc import Sequence
from typing import Any

_BOOLEANS = {"true": True, "t": True, "yes": True, "y": True, "on": True, "1": True}
_BOOLEANS |= {"false": False, "f": False, "no": False, "n": False, "off": False, "0": False}


def parse_value(hint: Any, words: Sequence[str]) -> Any:
    """Returns the value of type `hint` that one or more words spell.

    None is typed as `none`. A tuple may be typed as words, with commas, and in brackets. Several
    words for one of any number of texts may hold commas and spaces.

    Raises:
        ValueError: the words spell no such value.
    """
    hint = _plain(hint)
    if typing.get_args(hint)[-1:] == (...,):
        (part_hint, _), (first, *others) = typing.get_args(hint), words
        parts = words if others else [part.strip() for part in first.split(",") if part.strip()]
        return tuple(parse_value(part_hint, [part]) for part in parts)
    if typing.get_origin(hint) is tuple:
        inner = re.fullmatch(r"\s*[\[(]?(.*?),?\s*[\])]?\s*", " ".join(words))
        parts = re.split(r"\s*,\s*|\s+", inner[1].strip()) if inner else []
        return tuple(
            parse_value(part_hint, [part])
            for part_hint, part in zip(typing.get_args(hint), parts, strict=True)
        )
    (word,) = words
    if optional := optional_type(hint):
        return None if word.lower() == "none" else parse_value(optional, words)
    if choices := choices_of(hint):
        if word not in choices:
            raise ValueError(word)
        return word
    parse = {bool: _boolean, int: _whole_number, float: float, str: str}
    return parse[hint](word)


def choices_of(hint: Any) -> tuple[str, ...]:
    """Returns the texts of a `Literal`, or none for another type."""
    hint = _plain(hint)
    return typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()


def optional_type(hint: Any) -> Any:
    """Returns X of a type `X | None`, and None for another type."""
    first, *others = typing.get_args(hint) or (None,)
    return first if isinstance(hint, types.UnionType) and others == [types.NoneType] else None


def type_phrase(hint: Any) -> str:
    """Returns a type as it stands after "is not"."""
    hint = _plain(hint)
    if choices := choices_of(hint):
        return f"one of {', '.join(choices)}"
    if optional := optional_type(hint):
        return f"{type_phrase(optional)} or none"
    if typing.get_args(hint)[-1:] == (...,):
        return "a sequence of texts"
    if typing.get_origin(hint) is tuple:
        return f"a sequence of {len(typing.get_args(hint))} numbers"
    names = {int: "a whole number", float: "a number", bool: "True or False", str: "one text"}
    return names.get(hint, str(hint))


def as_typed(value: Any) -> str:
    """Returns a value in a form that `parse_value` takes, with quotes where a shell needs them."""
    text = ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
    return text if re.fullmatch(r"[\w./:=,+~-]*", text) else f"'{text}'"


def _plain(hint: Any) -> Any:
    return hint.__value__ if isinstance(hint, typing.TypeAliasType) else hint


def _boolean(word: str) -> bool:
    if word.lower() not in _BOOLEANS:
        raise ValueError(word)
    return _BOOLEANS[word.lower()]


def _whole_number(word: str) -> int:
    """Returns a whole number, also from `1e3`."""
    try:
        return int(word)
    except ValueError:
        number = float(word)
    if not number.is_integer():  # Infinite and undefined ones are not.
        raise ValueError(word)
    return int(number)
