"""Configs to and from plain dicts and ConfigDicts; what differs between two."""

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from typing import Any

import ml_collections
from ml_collections import config_dict

from matta_jax.config._config import Config
from matta_jax.config._fields import Section, type_of
from matta_jax.config._model import ModelConfig, model_sections, section_of
from matta_jax.deprecations import current_fields, told_field
from matta_jax.errors import UserError, did_you_mean, shorten

SECTIONS: dict[str, type[Section]] = {
    declared.name: declared.type  # type: ignore[misc]
    for declared in dataclasses.fields(Config)
}


def field_names(sections: Mapping[str, type[Section]] | None = None) -> Iterator[str]:
    """Yields every field as `section.field`: of a nest's run, of whatever family; or of `sections`,
    by name, of another kind of run.
    """
    for section, classes in classes_of(sections).items():
        names = [declared.name for cls in classes for declared in dataclasses.fields(cls)]
        # Families share most fields, and each is yielded once; a set would lose their order.
        for name in dict.fromkeys(names):
            yield f"{section}.{name}"


def free_fields() -> frozenset[str]:
    """The fields that may change between a run and its continuation, as `section.field`."""
    return _fields_with("is_free")


def state_fields() -> frozenset[str]:
    """The fields that must agree for an optimiser state to be taken up, as `section.field`."""
    return _fields_with("in_state")


def _fields_with(fact: str) -> frozenset[str]:
    return frozenset(
        f"{section}.{declared.name}"
        for section, sections in all_sections().items()
        for cls in sections
        for declared in dataclasses.fields(cls)
        if declared.metadata[fact]
    )


def classes_of(sections: Mapping[str, type[Section]] | None) -> dict[str, list[type[Section]]]:
    """The classes that each section may have; `sections` as of `field_names`."""
    if sections is None:
        return all_sections()
    return {name: [cls] for name, cls in sections.items()}


def all_sections() -> dict[str, list[type[Section]]]:
    """Returns the classes that a section may have: one for each family of models."""
    sections = {name: [cls] for name, cls in SECTIONS.items()}
    return sections | {"model": [ModelConfig, *model_sections().values()]}


def to_dict(config: Config) -> dict[str, dict[str, Any]]:
    """Returns plain nested dicts, fit for JSON: tuples become lists."""
    return {
        section: {
            declared.name: _plain(getattr(getattr(config, section), declared.name))
            for declared in dataclasses.fields(getattr(config, section))
        }
        for section in SECTIONS
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return list(value) if isinstance(value, tuple) else value


def from_dict(values: Mapping[str, Any]) -> Config:
    """Builds a `Config` from nested mappings; fields left out take their defaults.

    Raises:
      UserError: an unknown section or field, a wrong type, a bad range, or fields that do not fit
        each other.
    """
    if not isinstance(values, Mapping | ml_collections.ConfigDict):
        raise UserError(f"config {shorten(values)} must hold sections: {', '.join(SECTIONS)}")
    sections = {}
    for section, fields in values.items():
        if section not in SECTIONS:
            hint = did_you_mean(section, [*SECTIONS, *field_names()])
            raise UserError(
                f"unknown config section {shorten(section)}{hint}; sections: {', '.join(SECTIONS)}"
            )
        if not isinstance(fields, Mapping | ml_collections.ConfigDict):
            raise UserError(
                f"config section {section}={shorten(fields)} must hold fields, not a single value"
            )
        sections[section] = _section(section, dict(fields.items()))
    return Config(**sections)  # type: ignore[arg-type]


def _section(section: str, fields: dict[str, Any]) -> Section:
    cls = SECTIONS[section]
    fields = current_fields(section, fields)
    if section == "model":
        cls = section_of(fields.get("name", ModelConfig.name))
        fields = _of_family(cls, fields)
    known_names = {declared.name for declared in dataclasses.fields(cls)}
    for name in fields:
        if name not in known_names:
            shown = name if isinstance(name, str) else shorten(name)
            raise UserError(unknown_field(f"{section}.{shown}"))
    return cls(**fields)


def _of_family(cls: type[Section], fields: dict[str, Any]) -> dict[str, Any]:
    """Leaves out fields of other families that say nothing: a run of an older version has them.

    Raises:
      UserError: a field of another family that says something.
    """
    names = {declared.name for declared in dataclasses.fields(cls)}
    family_fields = {}
    for name, value in fields.items():
        owner = None if name in names else _family_with(name)
        if owner is None:
            family_fields[name] = value
            continue
        family, section = owner
        if _plain(value) != _plain(getattr(section(), name)):
            raise UserError(
                f"model.{name}={shorten(value)} is of {section.noun}s; set model.name={family}, "
                "or leave it out"
            )
    return family_fields


def _family_with(field_name: str) -> tuple[str, type[ModelConfig]] | None:
    """The first family whose section has a field of this name."""
    for family, section in model_sections().items():
        if field_name in {declared.name for declared in dataclasses.fields(section)}:
            return family, section
    return None


def override(config: Config, values: Mapping[str, Any]) -> Config:
    """Returns `config` with other values of some fields, `section.field` -> value.

    Raises:
      UserError: as `from_dict` does.
    """
    known_names = set(field_names())
    nested = to_dict(config)
    for name, value in values.items():
        if name not in known_names:
            raise UserError(unknown_field(name if isinstance(name, str) else shorten(name)))
        section, _, field_name = name.partition(".")
        nested[section][field_name] = value
    return from_dict(nested)


def unknown_field(name: str, sections: Mapping[str, type[Section]] | None = None) -> str:
    """Returns the line about a field that does not exist; `sections` as of `field_names`."""
    section = name.split(".", 1)[0]
    names = list(field_names(sections))
    siblings = [field for field in names if field.startswith(section + ".")]
    choices = f"; fields: {', '.join(siblings)}"
    if not siblings:
        choices = f"; sections: {', '.join(classes_of(sections))}"
    hint = told_field(name) or did_you_mean(name, names) or choices
    return f"unknown config field {shorten(name)}{hint}"


def to_config_dict(config: Config) -> ml_collections.ConfigDict:
    """Returns a ConfigDict for absl's `config_flags`: None fields become typed placeholders, so
    flags can set them. The model's section has the fields of every family, so that a flag may
    choose another.
    """
    result = ml_collections.ConfigDict()
    for section, classes in all_sections().items():
        # The config's values come last: of a field of two families, its value holds.
        values: dict[str, Any] = {}
        for part in [*(cls() for cls in classes), getattr(config, section)]:
            values |= _flag_values(part)

        result[section] = ml_collections.ConfigDict()
        for name, value in values.items():
            result[section][name] = value
    return result


def _flag_values(part: Section) -> dict[str, Any]:
    hints = typing.get_type_hints(type(part))
    values = {}
    for declared in dataclasses.fields(part):
        value = getattr(part, declared.name)
        if value is None:
            value = config_dict.placeholder(type_of(hints[declared.name]))
        elif isinstance(value, Mapping):
            value = ml_collections.ConfigDict(dict(value))
        values[declared.name] = value
    return values


def from_config_dict(values: ml_collections.ConfigDict) -> Config:
    """Checks an overridden ConfigDict into a `Config`. Raises UserError as `from_dict` does."""
    return from_dict(values.to_dict())


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Returns `section.field: x -> y` for every field in which two `to_dict` results differ.

    A field that one side lacks, being from an older version or of another family, has its default
    there.
    """
    lines = []
    for section in sorted({*a, *b}):
        defaults = _defaults(section)
        old_fields = defaults | dict(a.get(section, {}))
        new_fields = defaults | dict(b.get(section, {}))
        for name in sorted({*old_fields, *new_fields}):
            if old_fields.get(name) != new_fields.get(name):
                lines.append(
                    f"{section}.{name}: {old_fields.get(name)!r} -> {new_fields.get(name)!r}"
                )
    return lines


def _defaults(section: str) -> dict[str, Any]:
    """The default of every field of a section, of whatever family."""
    defaults: dict[str, Any] = {}
    # Reversed, so that the first family's default stands where several have a field.
    for cls in reversed(all_sections().get(section, [])):
        part = cls()
        for declared in dataclasses.fields(part):
            defaults[declared.name] = _plain(getattr(part, declared.name))
    return defaults


def choose_variant(variants: Mapping[str, Any], name: str) -> Any:
    """Returns `variants[name]`: what follows the colon in
    `--config=configs/quickstart.py:two_point`.
    """
    if name not in variants:
        raise UserError(
            f"config variant {shorten(name)} must be one of "
            f"{', '.join(variants)}{did_you_mean(name, variants)}"
        )
    return variants[name]
