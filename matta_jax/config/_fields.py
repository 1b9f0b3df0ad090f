"""Fields of a section: each with its type, default, range and meaning, and what else is true of it.

A fact about a field stands at the field: no list of field names elsewhere repeats it.
"""

import dataclasses
import math
import types
import typing
import unicodedata
from collections.abc import Mapping, Sized
from typing import Any, ClassVar

from immutabledict import immutabledict

from matta_jax.errors import UserError, check_choice, shorten

FLOAT_TYPES = ("float32", "bfloat16")
"""Types of numbers that a model may compute in, or be kept in."""

# Beside numbers of order 1, float32 takes less for nothing, and squares of it, as norms and moments
# need them, for 0.
_SMALLEST = 1e-9

# Of a string, which is a name, a path or a spec of many layers; and of a tuple or a mapping.
_LONGEST_STRING = 2**16
_MOST_ITEMS = 1024
_LONGEST_KEY = 60

# Characters that end a line, that steer a terminal, or that UTF-8 cannot write.
_BAD_CATEGORIES = ("Cc", "Zl", "Zp", "Cs")

_WORDS = {int: "a whole number", float: "a number", str: "a string", bool: "True or False"}


def field(  # noqa: PLR0913  The keyword-only ones are the rules of a field.
    default: Any,
    meaning: str,
    *,
    minimum: float | None = None,
    above: float | None = None,
    maximum: float | None = None,
    smallest: float = _SMALLEST,
    choices: tuple[str, ...] | None = None,
    is_prose: bool = False,
    is_free: bool = False,
    in_state: bool = False,
) -> Any:
    """Declares a field of a section.

    Args:
      default: its value where none is given.
      meaning: what it does, for people.
      minimum, above, maximum: its range; of a tuple or mapping, that of each item.
      smallest: of a float whose range begins at 0.0, the least value but 0.
      choices: the only values it may have.
      is_prose: whether a string may be empty, and of several lines: it is no name.
      is_free: whether it may change between a run and its continuation: what the run computes does
        not depend on it.
      in_state: whether an optimiser state fits only runs with the same value.
    """
    metadata = {
        "meaning": meaning,
        "minimum": minimum,
        "above": above,
        "maximum": maximum,
        "smallest": smallest if _begins_at_zero(minimum, above) else None,
        "choices": choices,
        "is_prose": is_prose,
        "is_free": is_free,
        "in_state": in_state,
    }
    if isinstance(default, Mapping):
        return dataclasses.field(default_factory=lambda: immutabledict(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def _begins_at_zero(minimum: float | None, above: float | None) -> bool:
    return any(type(bound) is float and bound == 0 for bound in (minimum, above))


@dataclasses.dataclass(frozen=True)
class Section:
    """Checks the type and the range of its own fields."""

    section: ClassVar[str]

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for declared in dataclasses.fields(self):
            name = f"{self.section}.{declared.name}"
            value = _checked_type(name, getattr(self, declared.name), hints[declared.name])
            _check_range(name, value, declared.metadata)
            # The section is frozen for all but its own making.
            object.__setattr__(self, declared.name, value)


def type_of(hint: Any) -> Any:
    """The type of a field that may be None, or its type itself."""
    if not isinstance(hint, types.UnionType):
        return hint
    return next(arg for arg in typing.get_args(hint) if arg is not type(None))


def _checked_type(name: str, value: Any, hint: Any) -> Any:
    """Returns `value` as the type `hint`, or raises UserError."""
    if isinstance(hint, types.UnionType) and value is None:
        return None

    kind = type_of(hint)
    origin = typing.get_origin(kind)
    if origin is tuple:
        return _checked_tuple(name, value, typing.get_args(kind)[0])
    if origin is not None and issubclass(origin, Mapping):
        return _checked_mapping(name, value, typing.get_args(kind)[1])
    if kind is float and type(value) is int:
        # A whole number beyond all floats is out of every range.
        return float(value) if abs(value) < 1e300 else math.inf
    # Not isinstance: True would be a whole number.
    if type(value) is not kind:
        raise UserError(
            f"{name}={shorten(value)} must be {_WORDS[kind]}, not {type(value).__name__}"
        )
    return value


def _checked_tuple(name: str, value: Any, kind: type) -> tuple[Any, ...]:
    types_of_items = (int,) if kind is int else (int, float)
    if isinstance(value, list | tuple) and all(type(item) in types_of_items for item in value):
        _check_length(name, value)
        return tuple(_checked_type(name, item, kind) for item in value)
    form = "whole numbers such as (256,512)" if kind is int else "numbers such as (0.5,0.25)"
    raise UserError(f"{name}={shorten(value)} must be a tuple of {form}")


def _checked_mapping(name: str, value: Any, kind: type) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise UserError(f"{name}={shorten(value)} must map names to values, such as {{'small': …}}")
    _check_length(name, value)
    items = {key: _checked_type(item_name(name, key), item, kind) for key, item in value.items()}
    return immutabledict(items)


def item_name(name: str, key: str) -> str:
    """Returns `name.key` as an error shows it: in one line, whatever the key is."""
    is_plain = key.isprintable() and len(key) <= _LONGEST_KEY
    return f"{name}.{key if is_plain else shorten(key)}"


def _check_length(name: str, value: Sized) -> None:
    if len(value) > _MOST_ITEMS:
        raise UserError(
            f"{name} has {len(value)} items, beginning {shorten(value)}; give at most {_MOST_ITEMS}"
        )


def _check_range(name: str, value: Any, rule: Mapping[str, Any]) -> None:
    if value is None:
        return
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_item(item_name(name, key), item, rule)
        return
    for item in value if isinstance(value, tuple) else (value,):
        _check_item(name, item, rule)


def _check_item(name: str, item: Any, rule: Mapping[str, Any]) -> None:
    shown = f"{name}={shorten(item)}"
    if rule["choices"] is not None:
        check_choice(name, item, rule["choices"])
    if isinstance(item, str):
        _check_string(shown, item, is_prose=rule["is_prose"])
    else:
        _check_number(shown, item, rule)


def _check_string(shown: str, text: str, *, is_prose: bool) -> None:
    if not is_prose and not text.strip():
        raise UserError(f"{shown} must not be empty; give a value, or leave it out")
    if len(text) > _LONGEST_STRING:
        raise UserError(
            f"{shown} has {len(text)} characters, and must have at most {_LONGEST_STRING}"
        )
    allowed = "\n\t" if is_prose else ""
    for character in text:
        if unicodedata.category(character) in _BAD_CATEGORIES and character not in allowed:
            raise UserError(
                f"{shown} has the character {character!r}, and must be of characters that can be "
                f"printed{'' if is_prose else ', in one line'}; take it out"
            )


def _check_number(shown: str, number: Any, rule: Mapping[str, Any]) -> None:
    if isinstance(number, float) and not math.isfinite(number):
        raise UserError(f"{shown} must be a finite number")
    if rule["minimum"] is not None and not number >= rule["minimum"]:
        raise UserError(f"{shown} must be at least {rule['minimum']}")
    if rule["above"] is not None and not number > rule["above"]:
        raise UserError(f"{shown} must be greater than {rule['above']}")
    if rule["smallest"] is not None and 0 < number < rule["smallest"]:
        zero = "" if rule["minimum"] is None else "0 or "
        raise UserError(f"{shown} must be {zero}at least {rule['smallest']}")
    if rule["maximum"] is not None and not number <= rule["maximum"]:
        raise UserError(f"{shown} must be at most {rule['maximum']}")
