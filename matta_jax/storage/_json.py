"""JSON, read strictly and written so that every reader takes it."""

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn, TypeGuard


def parse_json(text: str) -> Any:
    """Returns the value of a JSON text.

    Raises:
      ValueError: it is no JSON, holds NaN or Infinity, which JSON has not, or is nested or long
        beyond what Python reads.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def json_text(value: Any, *, indent: int | None = None) -> str:
    """Returns a value as JSON, in which a number that is not finite is null: JSON has none."""
    return json.dumps(_finite_parts(value), indent=indent, allow_nan=False)


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a value of JSON, or of a caller, is a number; to Python true and false are, too."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_whole(value: Any) -> TypeGuard[int]:
    """Whether a value is a whole number, as `is_number`."""
    return isinstance(value, int) and not isinstance(value, bool)


def _refuse_constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON number")


def _finite(text: str) -> float:
    # `1e999` is a JSON number, and no float.
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is too large a number")
    return number


def _finite_parts(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: _finite_parts(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite_parts(part) for part in value]
    return value
