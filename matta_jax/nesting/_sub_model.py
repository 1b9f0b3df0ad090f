"""SubModel: how much of each axis a model uses."""

import dataclasses
import functools
import itertools
from collections.abc import Mapping

from immutabledict import immutabledict

Sizes = Mapping[str, int]
"""Logical axis to size."""


@dataclasses.dataclass(frozen=True)
class Run:
    """Consecutive kept layers of equal sizes. `layers` are indices into the TA's layers."""

    layers: tuple[int, ...]
    sizes: Sizes


@dataclasses.dataclass(frozen=True)
class SubModel:
    """How much of each axis of the TA a model uses: the first entries of each.

    Two sub-models are equal when they use the same weights: an axis whose size is the same in all
    layers stands in `sizes`, wherever it was given.

    Attributes:
      layers: the layers that run, rising indices into the TA's.
      sizes: logical axis to size, of what all layers have alike.
      per_layer: logical axis to its size in each of `layers`.
      member: its entry on the axis `members`, of weights that each member owns by itself; None: it
        uses no such weights.
    """

    layers: tuple[int, ...]
    sizes: Sizes
    per_layer: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=immutabledict)
    member: int | None = None

    def __post_init__(self) -> None:
        sizes = dict(self.sizes)
        per_layer = {}
        for axis, values in self.per_layer.items():
            if len(values) != len(self.layers):
                raise ValueError(f"{len(self.layers)} layers but {len(values)} sizes of {axis}")
            if axis in sizes:
                raise ValueError(f"{axis} has one size and a size for each layer; give one of them")
            # Moved, so that two ways to say the same sizes are equal and compile once.
            if len(set(values)) == 1:
                sizes[axis] = values[0]
            elif values:
                per_layer[axis] = tuple(values)

        # In one order, however they were given: manifests and specs list them as they stand here.
        object.__setattr__(self, "sizes", immutabledict(sorted(sizes.items())))
        object.__setattr__(self, "per_layer", immutabledict(sorted(per_layer.items())))

    @property
    def num_layers(self) -> int:
        """Number of layers that run."""
        return len(self.layers)

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes that it has a size of."""
        return (*self.sizes, *self.per_layer)

    def along(self, axis: str) -> tuple[int, ...]:
        """The size of an axis in each of its layers."""
        if axis in self.per_layer:
            return self.per_layer[axis]
        return (self.sizes[axis],) * self.num_layers

    def largest(self, axis: str) -> int:
        """The largest size of an axis in any layer."""
        if axis in self.per_layer:
            return max(self.per_layer[axis], default=0)
        return self.sizes[axis]

    def sizes_in(self, layer: int) -> Sizes | None:
        """The sizes of all axes in the TA's layer `layer`; None where this model skips it."""
        position = self._positions.get(layer)
        return None if position is None else self._sizes_at(position)

    @functools.cached_property
    def _positions(self) -> dict[int, int]:
        """Of each layer its position: a look-up of each in a tuple takes deep models minutes."""
        return {layer: position for position, layer in enumerate(self.layers)}

    def _sizes_at(self, position: int) -> Sizes:
        sizes = dict(self.sizes)
        for axis, values in self.per_layer.items():
            sizes[axis] = values[position]
        # Hashable, because options of a switch are found by their sizes.
        return immutabledict(sizes)

    @property
    def runs(self) -> tuple[Run, ...]:
        """The kept layers as runs of equal sizes, in order."""
        positions = range(self.num_layers)
        runs = []
        # Neighbours alone are grouped: equal layers with others between them are two runs.
        for sizes, group in itertools.groupby(positions, key=self._sizes_at):
            layers = tuple(self.layers[position] for position in group)
            runs.append(Run(layers, sizes))
        return tuple(runs)

    def resized(self, **sizes: int | tuple[int, ...]) -> "SubModel":
        """The same layers with other sizes of some axes: one size, or one for each layer."""
        # An axis may go from one size to a size for each layer, or back: its old entry must go.
        uniform = {axis: size for axis, size in self.sizes.items() if axis not in sizes}
        per_layer = {axis: values for axis, values in self.per_layer.items() if axis not in sizes}

        for axis, size in sizes.items():
            if isinstance(size, tuple):
                per_layer[axis] = size
            else:
                uniform[axis] = size
        return SubModel(self.layers, uniform, per_layer, self.member)

    def with_layers(self, layers: tuple[int, ...]) -> "SubModel":
        """Other layers, of sizes that are the same in all of them."""
        if self.per_layer:
            raise ValueError(f"sizes differ between layers: {dict(self.per_layer)}")
        return SubModel(layers, self.sizes, member=self.member)

    def part(self, layers: tuple[int, ...]) -> "SubModel":
        """Some of its layers, each with its own sizes."""
        positions = [self.layers.index(layer) for layer in layers]
        per_layer = {
            axis: tuple(values[position] for position in positions)
            for axis, values in self.per_layer.items()
        }
        return SubModel(layers, self.sizes, per_layer, self.member)

    def within(self, container: "SubModel") -> bool:
        """Whether every weight of this model is a weight of `container`."""
        # Weights that a member owns are in no other one, whatever their sizes.
        if self.member != container.member:
            return False
        for layer in self.layers:
            sizes = self.sizes_in(layer)
            limits = container.sizes_in(layer)
            if sizes is None or limits is None:
                return False
            if any(size > limits[axis] for axis, size in sizes.items()):
                return False
        return True
