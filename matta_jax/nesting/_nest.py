"""Nest: the Student and other members inside their TA, and the sizes that they may have."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence

from immutabledict import immutabledict

from matta_jax.errors import UserError, listed, shorten
from matta_jax.nesting._axes import axis_of, word_of
from matta_jax.nesting._sub_model import Sizes, SubModel

STUDENT = "student"
TA = "ta"


@dataclasses.dataclass(frozen=True)
class Nest:
    """Named sub-models of one TA, and the granularities that extraction may choose from.

    Attributes:
      members: by name: `student` and `ta`, the whole, and any that a run names beside them.
      allowed: logical axis to its allowed sizes, rising to the TA's.
      spread: whether fewer layers than the TA's are spread evenly, instead of a prefix.
      by_layer: axes that random mixes and searches choose anew in each layer.
    """

    members: Mapping[str, SubModel]
    allowed: Mapping[str, tuple[int, ...]]
    spread: bool = False
    by_layer: tuple[str, ...] = ("d_ff",)

    def __post_init__(self) -> None:
        # Hashable, because a nest is part of what compiled functions are cached by.
        object.__setattr__(self, "members", immutabledict(self.members))
        object.__setattr__(self, "allowed", immutabledict(self.allowed))

    @property
    def student(self) -> SubModel:
        """The Student, as a part of the TA."""
        return self.members[STUDENT]

    @property
    def ta(self) -> SubModel:
        """The whole TA."""
        return self.members[TA]

    @property
    def num_layers(self) -> int:
        """Layers of the TA."""
        return self.ta.num_layers

    @property
    def others(self) -> dict[str, SubModel]:
        """The members that a run names beside Student and TA."""
        members = {}
        for name, member in self.members.items():
            if name not in (STUDENT, TA):
                members[name] = member
        return members

    @functools.cached_property
    def layer_options(self) -> tuple[Sizes, ...]:
        """What a mix chooses from in each layer: sizes of the axes of `by_layer`, rising."""
        choices = [self.allowed[axis] for axis in self.by_layer]
        options = []
        # The last axis varies fastest: random choices of a step are indices into this order.
        for sizes in itertools.product(*choices):
            options.append(immutabledict(zip(self.by_layer, sizes, strict=True)))
        return tuple(options)

    def sizes_alike(self, sub_model: SubModel) -> Sizes:
        """The sizes of a sub-model that are no choice of its layers."""
        # A size that layers choose stands in `sizes` too, where all of them choose the same.
        sizes = {axis: n for axis, n in sub_model.sizes.items() if axis not in self.by_layer}
        return immutabledict(sizes)

    def option_of(self, sub_model: SubModel, layer: int) -> int | None:
        """The index into `layer_options` of a layer of a sub-model; None where it skips it.

        Raises:
          ValueError: its layers differ in an axis that is no choice of theirs.
        """
        self.check_options(sub_model)
        sizes = sub_model.sizes_in(layer)
        if sizes is None:
            return None
        option = {axis: sizes[axis] for axis in self.by_layer}
        return self.layer_options.index(immutabledict(option))

    def check_options(self, sub_model: SubModel) -> None:
        """Raises ValueError where layers differ in an axis that is no choice of theirs.

        Two layers of different sizes would pass for the same option.
        """
        varied = sorted(set(sub_model.per_layer) - set(self.by_layer))
        if varied:
            raise ValueError(f"{varied} differ between layers, and are no choices of the nest")

    def boundaries(self, axis: str) -> tuple[int, ...]:
        """The sizes at which a logical axis may be cut, rising; empty for one that never is."""
        return self.allowed.get(axis, ())

    def granule(self, axis: str) -> int:
        """Entries of one granule of an axis: every allowed size is a whole number of granules."""
        return math.gcd(*self.allowed[axis])

    @property
    def granules(self) -> dict[str, int]:
        """The granule of each axis that is stored in granules."""
        granules = {}
        for axis in self.allowed:
            if axis_of(axis).is_granulated:
                granules[axis] = self.granule(axis)
        return granules

    def layers_of(self, count: int) -> tuple[int, ...]:
        """The `count` layers that a model of that depth runs: a prefix, or an even spread with
        first and last.
        """
        return layers_of(count, self.num_layers, self.spread)

    def mix(self, sizes: Sequence[int], axis: str = "d_ff") -> SubModel:
        """The TA with its own size of an axis in each layer (Mix'n'Match)."""
        return self.ta.resized(**{axis: tuple(sizes)})

    def check(self, sub_model: SubModel, spec: str = "") -> None:
        """Raises UserError, naming the axis, the value and what is allowed, unless the model lies
        in the nest.
        """
        where = f"sub_model {shorten(spec)}: " if spec else ""
        for axis, size in sub_model.sizes.items():
            if axis not in self.by_layer:
                self._check_size(where, axis, size)
        self._check_layers(where, sub_model)
        for axis in sub_model.axes:
            if axis in self.by_layer or axis in sub_model.per_layer:
                for size in sub_model.along(axis):
                    self._check_size(where, axis, size)

    def _check_size(self, where: str, axis: str, size: int) -> None:
        if size not in self.allowed[axis]:
            raise UserError(
                f"{where}{word_of(axis)}={size} is outside the nest; allowed: "
                f"{listed(self.allowed[axis])}"
            )

    def _check_layers(self, where: str, sub_model: SubModel) -> None:
        if not sub_model.layers:
            raise UserError(
                f"{where}layers=0 is outside the nest; keep at least one of the "
                f"{self.num_layers} layers"
            )
        for layer in sub_model.layers:
            if not 0 <= layer < self.num_layers:
                raise UserError(
                    f"{where}layers={layer} is outside the nest; allowed: 0 to "
                    f"{self.num_layers - 1}"
                )
        for layer, next_layer in itertools.pairwise(sub_model.layers):
            if layer >= next_layer:
                raise UserError(
                    f"{where}layers={layer},{next_layer} must rise; sort and deduplicate them"
                )


def layers_of(count: int, total: int, spread: bool) -> tuple[int, ...]:
    """Which `count` of `total` layers a model of that depth runs."""
    if not spread or count == 1:
        return tuple(range(count))
    # No layer comes twice: with count <= total, steps are at least 1.
    return tuple(round(i * (total - 1) / (count - 1)) for i in range(count))
