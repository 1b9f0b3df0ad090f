"""Old names that still work: the one place that has them.

A public call or a field of the config that is renamed has an entry here for one release. What uses
the old name goes on working, with a line that says the new one. A test fails when the version
reaches `gone_in`: the entry is then removed.
"""

import dataclasses
import warnings
from collections.abc import Mapping
from typing import Any

from matta_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Renamed:
    """What has another name now.

    Attributes:
      name: the new one.
      since: the version that has it.
      gone_in: the version in which the old one is gone: the next minor one.
    """

    name: str
    since: str
    gone_in: str


CALLS: dict[str, Renamed] = {}
"""By old name, calls of `matta_jax`."""
FIELDS: dict[str, Renamed] = {}
"""By old name, fields of the config; both as `section.field`, of the same section."""


def current_call(name: str) -> str:
    """The name of a public call, for its old one, with a DeprecationWarning; any other as it is."""
    if name not in CALLS:
        return name
    _warn(f"matta_jax.{name}", CALLS[name], f"matta_jax.{CALLS[name].name}")
    return CALLS[name].name


def current_fields(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a section of the config, those of old names by their new ones, with a
    DeprecationWarning.

    Raises:
      UserError: both names of a field are set.
    """
    current = dict(values)
    for name in values:
        # What is no name is refused by whoever knows the fields.
        entry = FIELDS.get(f"{section}.{name}") if isinstance(name, str) else None
        if entry is None:
            continue
        new_name = entry.name.partition(".")[2]
        if new_name in values:
            raise UserError(
                f"{section}.{name} is the old name of {entry.name}, and both are set; leave out "
                f"{section}.{name}"
            )
        _warn(f"{section}.{name}", entry, entry.name)
        current[new_name] = current.pop(name)
    return current


def told_field(name: str) -> str:
    """What a line about an unknown field says of an old name; nothing of another."""
    entry = FIELDS.get(name)
    return "" if entry is None else f"; it is {entry.name} since {entry.since}"


def _warn(old: str, entry: Renamed, new: str) -> None:
    text = f"{old} is {new} since {entry.since}, and gone in {entry.gone_in}; use {new}"
    # Of whoever called this module's caller: a program's own line.
    warnings.warn(text, DeprecationWarning, stacklevel=4)
