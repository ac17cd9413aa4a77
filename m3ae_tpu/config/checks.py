"""Checks of a config's fields. A refused value is named with its field, its default and the fix."""

import dataclasses
import math
import typing
from collections.abc import Mapping
from typing import Any

from m3ae_tpu.errors import UserError


class FieldError(UserError):
    """A field with a value that cannot work. The message begins with the field's name."""

    def below(self, path: str) -> "FieldError":
        """Returns the error with the field's name seen from further up: `path` goes before it."""
        return FieldError(f"{path}.{self}" if path else str(self))


def require_field(config: Any, name: str, holds: bool, problem: str, fix: str = "") -> None:
    """Raises `FieldError("<name> = <value> <problem>. <fix>")` unless `holds`.

    Args:
        config: A dataclass.
        name: The field.
        holds: Whether its value can work.
        problem: Predicate of the sentence, such as "is negative".
        fix: A sentence that says what to do; default: to set the field's default.
    """
    if not holds:
        value = getattr(config, name)
        fix = fix or f"Set {_default(config, name)}, the default."
        raise FieldError(f"{name} = {value} {problem}. {fix}")


def require_positive(config: Any, *names: str) -> None:
    """Raises `FieldError` unless the fields are finite numbers above 0."""
    for name in names:
        value = getattr(config, name)
        problem = "is not positive" if value <= 0 else "is not finite"
        require_field(config, name, 0 < value < float("inf"), problem)


def require_within(config: Any, interval: str, *names: str) -> None:
    """Raises `FieldError` unless the fields lie in an interval such as "[0, 1)" or "[0, inf)".

    Of a field with several numbers each must lie in it. NaN lies in none.
    """
    low, high = (float(bound) for bound in interval[1:-1].split(","))

    def holds(value: float | int) -> bool:
        is_above = value >= low if interval[0] == "[" else value > low
        return is_above and (value <= high if interval[-1] == "]" else value < high)

    for name in names:
        value = getattr(config, name)
        if isinstance(value, tuple):
            problem = f"has a number that is not in {interval}"
            require_field(config, name, all(map(holds, value)), problem)
        else:
            require_field(config, name, holds(value), f"is not in {interval}")


def require_choice(config: Any, *names: str) -> None:
    """Raises `FieldError` unless the fields have one of the values of their `Literal` type."""
    hints = typing.get_type_hints(type(config))
    for name in names:
        hint = hints[name]
        choices = typing.get_args(getattr(hint, "__value__", hint))
        is_choice = getattr(config, name) in choices
        require_field(config, name, is_choice, f"is not one of {', '.join(choices)}")


def require_whole_patches(image_size: int, patch_size: int) -> None:
    """Raises `FieldError` unless images divide into patches."""
    if image_size % patch_size:
        raise FieldError(
            f"data.image_size = {image_size} is not a multiple of model.patch_size = {patch_size}. "
            f"Set --data.image_size={max(1, round(image_size / patch_size)) * patch_size}."
        )


def require_even_heads(tensor: int, sizes: Mapping[str, int]) -> None:
    """Raises `FieldError` unless sizes, by the name of their field, divide over `mesh.tensor`."""
    for name, size in sizes.items():
        if tensor > 0 and size % tensor:
            fits = math.gcd(tensor, *sizes.values())
            raise FieldError(
                f"mesh.tensor = {tensor} does not divide {name} = {size}. Set --mesh.tensor={fits}."
            )


def _default(config: Any, name: str) -> Any:
    return next(field.default for field in dataclasses.fields(config) if field.name == name)
