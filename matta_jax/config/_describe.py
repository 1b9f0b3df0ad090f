"""Every field of a run, for people."""

import dataclasses
import textwrap
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from matta_jax.config._convert import classes_of
from matta_jax.config._fields import Section

_COLUMNS = 100


def describe_fields(sections: Mapping[str, type[Section]] | None = None) -> str:
    """Returns a text of all fields: name, type, default, range or choices, and meaning.

    Args:
      sections: as of `field_names`.
    """
    parts = []
    for section, classes in classes_of(sections).items():
        # Families share most fields, and each is told once.
        declared = {field.name: field for cls in classes for field in dataclasses.fields(cls)}
        heading = (classes[0].__doc__ or "").strip().split("\n")[0]
        parts += ["", f"{section}: {heading}"]
        for field in declared.values():
            parts += list(_lines(section, field))
    return "\n".join(parts).strip()


def _lines(section: str, field: Any) -> Iterator[str]:
    yield f"  --config.{section}.{field.name}  {_kind(field)}, default {_default(field)!r}"
    text = " ".join([field.metadata["meaning"], _range(field.metadata)]).strip()
    yield textwrap.fill(text, _COLUMNS, initial_indent=" " * 6, subsequent_indent=" " * 6)


def _kind(field: Any) -> str:
    # Of `int` the name; `int | None` and `tuple[int, ...]` are no types, and write themselves.
    if isinstance(field.type, type) and not typing.get_origin(field.type):
        return field.type.__name__
    return str(field.type).replace("collections.abc.", "")


def _default(field: Any) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    return dict(field.default_factory())


def _range(rule: Any) -> str:
    """The values that a field may have, in words; empty where it may have any of its type."""
    if rule["choices"] is not None:
        return f"One of {', '.join(rule['choices'])}."
    words = {"minimum": "at least", "smallest": "at least", "maximum": "at most"}
    bounds = {
        name: f"{word} {rule[name]}" for name, word in words.items() if rule[name] is not None
    }
    if "smallest" in bounds and bounds.pop("minimum", ""):
        bounds["smallest"] = f"0 or {bounds['smallest']}"
    return f"[{', '.join(bounds.values())}]" if bounds else ""
