"""Architecture: everything needed to build a plain model."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from immutabledict import immutabledict

from matta_jax.config import ModelConfig
from matta_jax.models.families import Family, family_of
from matta_jax.nesting import (
    GRANULES,
    RECYCLED,
    RESIDUAL,
    THOUGHTS,
    Nest,
    Sizes,
    SubModel,
    axis_of,
)

MOST_LAYERS = 10_000
MOST = 2**24
"""Layers, and any other size: no model has more, and a damaged number would fill the memory."""


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The sizes of a plain model: everything needed to build it.

    Attributes:
      family_name: of its family.
      max_len: the longest sequence that it reads.
      fixed: sizes of the axes that no nest slices, by axis.
      sub_model: the model as a sub-model of itself: its layers and nested sizes.
      granules: entries of one granule of each axis that is stored in granules.
      options: facts of its family that are no sizes.
    """

    family_name: str
    max_len: int
    fixed: Mapping[str, int]
    sub_model: SubModel
    granules: Mapping[str, int]
    options: Mapping[str, Any] = dataclasses.field(default_factory=immutabledict)

    def __post_init__(self) -> None:
        # Hashable: what follows from an architecture alone is cached by it.
        for name in ("fixed", "granules", "options"):
            object.__setattr__(self, name, immutabledict(getattr(self, name)))

    @property
    def family(self) -> Family:
        """Its family."""
        return family_of(self.family_name)

    @property
    def num_layers(self) -> int:
        """Its layers."""
        return self.sub_model.num_layers

    @property
    def d_model(self) -> int:
        """Width of its residual stream."""
        return self.sub_model.sizes[RESIDUAL]

    @property
    def vocab_size(self) -> int:
        """Ids that it knows."""
        return self.fixed["vocab"]

    @property
    def table_path(self) -> str | None:
        """Path of the table that hidden states are compared with; None where there is none."""
        return self.family.table_path(self.options)

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.fixed["head_dim"]

    def along(self, axis: str) -> tuple[int, ...]:
        """The size of a nested axis in each layer."""
        return self.sub_model.along(axis)

    @property
    def earlier(self) -> SubModel | None:
        """The pass that the model runs before its own, as a sub-model of it; None: it has none."""
        return earlier_of(self.family, self.options, self.sub_model)

    def axis_sizes(self, run_sizes: Sizes | None = None) -> dict[str, int]:
        """The size of every axis of its weights, granules among them.

        Args:
          run_sizes: those of a run of layers; None: of what stands beside the layers.
        """
        nested_sizes = self.sub_model.sizes if run_sizes is None else run_sizes
        sizes = dict(self.fixed)
        for axis, size in nested_sizes.items():
            # Stored as two axes, whose product is the size.
            if axis_of(axis).is_granulated:
                sizes[axis + GRANULES] = size // self.granules[axis]
                sizes[axis] = self.granules[axis]
            else:
                sizes[axis] = size
        return sizes

    def to_json(self) -> dict[str, Any]:
        """Returns it as a manifest keeps it."""
        per_layer = {axis: list(sizes) for axis, sizes in self.sub_model.per_layer.items()}
        return {
            "family": self.family_name,
            "max_len": self.max_len,
            "fixed": dict(self.fixed),
            "num_layers": self.num_layers,
            "sizes": dict(self.sub_model.sizes),
            "per_layer": per_layer,
            "granules": dict(self.granules),
            # JSON has no tuples. Reading makes tuples of its lists again: options must be hashable.
            "options": _listed(dict(self.options)),
        }


def architecture_of(model: ModelConfig, nest: Nest, sub_model: SubModel) -> Architecture:
    """The plain model that `sub_model` becomes when it is extracted."""
    family = family_of(model.name)
    return Architecture(
        family_name=family.name,
        max_len=model.max_len,
        fixed=family.fixed_sizes(model),
        sub_model=_of_itself(sub_model),
        # The nest's, though the plain model needs none: slices then keep the shape of granules.
        granules=nest.granules,
        options=family.options(model, sub_model.layers),
    )


def earlier_of(family: Family, options: Mapping[str, Any], sub_model: SubModel) -> SubModel | None:
    """The pass that a sub-model runs before its own, as a sub-model with the same layers; None: it
    has none.
    """
    sizes = family.earlier(sub_model.sizes, options)
    if sizes is None:
        return None

    by_layer = []
    for layer in sub_model.layers if sub_model.per_layer else ():
        by_layer.append(family.earlier(sub_model.sizes_in(layer) or {}, options) or {})
    per_layer = {axis: tuple(each[axis] for each in by_layer) for axis in sub_model.per_layer}
    return SubModel(sub_model.layers, sizes, per_layer, sub_model.member)


def read_entries(earlier: SubModel | None) -> Mapping[str, int]:
    """Of the axes of what joins passes, how many entries a pass reads after this earlier one."""
    return {} if earlier is None else {THOUGHTS: 1, RECYCLED: earlier.sizes[RESIDUAL]}


def _of_itself(sub_model: SubModel) -> SubModel:
    """A sub-model as a plain model, all of whose layers run."""
    # Without `member`: an extracted model has its weights to itself, and no axis of members.
    layers = tuple(range(sub_model.num_layers))
    return SubModel(layers, sub_model.sizes, sub_model.per_layer)


def architecture_from_json(values: Mapping[str, Any]) -> Architecture:
    """Reads what `to_json` returned, or what a manifest of version 2 holds.

    Raises:
      KeyError, TypeError, ValueError: it is neither.
    """
    if "family" not in values:
        return _from_version_2(values)

    layers = tuple(range(values["num_layers"]))
    per_layer = {axis: tuple(sizes) for axis, sizes in values["per_layer"].items()}
    return Architecture(
        family_name=family_of(values["family"]).name,
        max_len=values["max_len"],
        fixed=values["fixed"],
        sub_model=SubModel(layers, values["sizes"], per_layer),
        granules=values["granules"],
        options={name: _tupled(value) for name, value in values["options"].items()},
    )


def _listed(value: Any) -> Any:
    """A value with lists in place of tuples."""
    if isinstance(value, dict):
        return {name: _listed(item) for name, item in value.items()}
    return [_listed(item) for item in value] if isinstance(value, tuple) else value


def _tupled(value: Any) -> Any:
    """A value with tuples in place of lists."""
    return tuple(_tupled(item) for item in value) if isinstance(value, list) else value


def _from_version_2(values: Mapping[str, Any]) -> Architecture:
    """The architecture in a manifest of the version before families: a GPT-2 or a scorer."""
    # Those manifests name no family, but a scorer alone has classes.
    is_scorer = values["num_classes"] > 0
    family_name = "scorer" if is_scorer else "gpt"
    fixed = {
        "vocab": values["vocab_size"],
        "positions": values["max_len"],
        "head_dim": values["head_dim"],
        "qkv": 3,
    }
    options = {}
    if is_scorer:
        categories = tuple(values["categories"])
        fixed["classes"] = values["num_classes"]
        fixed["dense"] = values["num_dense"]
        fixed["categories"] = sum(categories)
        options["categories"] = categories

    widths = tuple(values["d_ff"])
    sizes = {"d_model": values["d_model"], "heads": values["num_heads"]}
    granules = {"heads": values["head_granule"], "d_ff": values["d_ff_granule"]}
    sub_model = SubModel(tuple(range(len(widths))), sizes, {"d_ff": widths})
    return Architecture(family_name, values["max_len"], fixed, sub_model, granules, options)
