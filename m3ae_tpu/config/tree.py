"""Nested configs as trees: their leaves by dotted name, with some replaced, or read from JSON.

A leaf is a value that is not a dataclass. The dataclasses in a tuple are numbered:
`data.sources.0.weight`.
"""

import dataclasses
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from m3ae_tpu.config.checks import FieldError


def leaves(config: Any) -> dict[str, Any]:
    """Returns the value of every leaf of a config."""
    return {name: value for name, value, _ in _walk(config, type(config), "")}


def leaf_types(config: Any) -> dict[str, Any]:
    """Returns the annotated type of every leaf of a config."""
    return {name: hint for name, _, hint in _walk(config, type(config), "")}


def replaced[Config](config: Config, changes: Mapping[str, Any]) -> Config:
    """Returns `config` with other values of the named leaves.

    All values are put in place before anything is checked, so that fields which depend on each
    other can change together.

    Raises:
        FieldError: a value that the config refuses, named from the root.
        KeyError: a name that is not a leaf.
    """
    unknown = changes.keys() - leaves(config).keys()
    if unknown:
        raise KeyError(*sorted(unknown))
    return _with_changes(config, changes, "")


def from_json[Config](config_type: type[Config], values: Any) -> Config:
    """Returns the config of which `dataclasses.asdict` made `values`.

    Fields that are left out have their defaults.

    Raises:
        FieldError: a field is unknown, or has a value of another type, or one that is refused.
    """
    return _from_json(config_type, values, "")


def differences(now: Mapping[str, Any], was: Mapping[str, Any]) -> dict[str, str]:
    """Returns a phrase for each name whose value differs, such as "seed = 1 now, was 0".

    Long values are shortened.
    """

    def shown(values: Mapping[str, Any], name: str) -> str:
        return textwrap.shorten(str(values.get(name, "nothing")), 100, placeholder=" ...")

    return {
        name: f"{name} = {shown(now, name)} now, was {shown(was, name)}"
        for name in dict.fromkeys([*now, *was])
        if name not in now or name not in was or now[name] != was[name]
    }


def _walk(value: Any, hint: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    """Yields name, value and type of the leaves below `value`."""
    if dataclasses.is_dataclass(value):
        hints = typing.get_type_hints(type(value))
        for field in dataclasses.fields(value):
            child = getattr(value, field.name)
            yield from _walk(child, hints[field.name], _join(name, field.name))
    elif _holds_dataclasses(value):
        for number, child in enumerate(value):
            yield from _walk(child, type(child), _join(name, number))
    else:
        yield name, value, hint


def _with_changes(value: Any, changes: Mapping[str, Any], name: str) -> Any:
    if dataclasses.is_dataclass(value):
        children = {
            field.name: _with_changes(getattr(value, field.name), changes, _join(name, field.name))
            for field in dataclasses.fields(value)
        }
        return _make(type(value), children, name)
    if _holds_dataclasses(value):
        return tuple(
            _with_changes(child, changes, _join(name, number)) for number, child in enumerate(value)
        )
    return changes.get(name, value)


def _from_json(hint: Any, value: Any, name: str) -> Any:
    """Turns a JSON value into one of type `hint`: dataclasses, tuples, choices and plain types, or
    None where the type allows it.
    """
    if isinstance(hint, typing.TypeAliasType):
        hint = hint.__value__
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:  # X | None
        return None if value is None else _from_json(args[0], value, name)
    if dataclasses.is_dataclass(hint):
        _require_type(isinstance(value, dict), hint, value, name)
        hints = typing.get_type_hints(hint)
        unknown = [key for key in value if key not in hints]
        if unknown:
            raise FieldError(
                f"{_join(name, unknown[0])} is not a field of {_type_name(hint)}. "
                "Remove it, or use the version of m3ae-tpu that wrote it."
            )
        children = {
            key: _from_json(hints[key], child, _join(name, key)) for key, child in value.items()
        }
        return _make(hint, children, name)
    if origin is tuple:
        is_sequence = isinstance(value, list | tuple)
        hints = args[:1] * len(value) if is_sequence and args[-1] is ... else args
        _require_type(is_sequence and len(hints) == len(value), hint, value, name)
        return tuple(
            _from_json(element_hint, element, _join(name, number))
            for number, (element_hint, element) in enumerate(zip(hints, value, strict=True))
        )
    if origin is typing.Literal:
        _require_type(value in args, hint, value, name)
        return value
    if hint is float and type(value) is int:
        return float(value)
    _require_type(type(value) is hint, hint, value, name)
    return value


def _make(config_type: Any, children: dict[str, Any], name: str) -> Any:
    """Makes a dataclass, which checks its fields, and names a refused one from the root."""
    try:
        return config_type(**children)
    except FieldError as error:
        raise error.below(name) from None


def _require_type(holds: bool, hint: Any, value: Any, name: str) -> None:
    if not holds:
        raise FieldError(
            f"{name or 'the config'} = {value!r} is not a {_type_name(hint)}. "
            "Put back what the run wrote."
        )


def _type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def _holds_dataclasses(value: Any) -> bool:
    return isinstance(value, tuple) and bool(value) and dataclasses.is_dataclass(value[0])


def _join(name: str, child: str | int) -> str:
    return f"{name}.{child}" if name else str(child)
