"""SubModel: how much of each axis a model uses. Nest: the Student inside its TA, and the sizes
between.
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence

from matta_jax.config import Config
from matta_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Run:
    """Consecutive kept layers of one d_ff. `layers` are indices into the TA's layers."""

    layers: tuple[int, ...]
    d_ff: int


@dataclasses.dataclass(frozen=True)
class SubModel:
    """How much of each axis of the TA a model uses: the first d_model dimensions, num_heads heads
    and, in each of the kept `layers` (rising indices into the TA's), the first d_ff neurons.
    """

    d_model: int
    num_heads: int
    layers: tuple[int, ...]
    d_ff: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.layers) != len(self.d_ff):
            raise ValueError(f"{len(self.layers)} layers but {len(self.d_ff)} widths")

    @property
    def num_layers(self) -> int:
        """Number of layers that run."""
        return len(self.layers)

    @property
    def runs(self) -> tuple[Run, ...]:
        """The kept layers as runs of equal d_ff, in order."""
        pairs = zip(self.layers, self.d_ff, strict=True)
        groups = itertools.groupby(pairs, key=lambda pair: pair[1])
        return tuple(Run(tuple(layer for layer, _ in group), width) for width, group in groups)

    def width_of(self, layer: int) -> int:
        """The d_ff of the TA's layer `layer`, 0 where this model skips it."""
        return self.d_ff[self.layers.index(layer)] if layer in self.layers else 0

    def within(self, other: "SubModel") -> bool:
        """Whether every weight of this model is a weight of `other`."""
        return (
            self.d_model <= other.d_model
            and self.num_heads <= other.num_heads
            and all(
                width <= other.width_of(layer)
                for layer, width in zip(self.layers, self.d_ff, strict=True)
            )
        )


@dataclasses.dataclass(frozen=True)
class Nest:
    """The Student inside its TA, with the granularities that extraction may choose from.

    Attributes:
      student: the Student, as a part of the TA.
      ta: the whole TA.
      head_dim: width of one head, the same for all.
      widths: allowed d_ff of a layer, rising from the Student's to the TA's.
      spread: whether fewer layers than the TA's are spread evenly instead of a prefix.
    """

    student: SubModel
    ta: SubModel
    head_dim: int
    widths: tuple[int, ...]
    spread: bool = False

    @property
    def d_models(self) -> tuple[int, ...]:
        """Allowed d_model."""
        return tuple(sorted({self.student.d_model, self.ta.d_model}))

    @property
    def head_counts(self) -> tuple[int, ...]:
        """Allowed num_heads."""
        return tuple(sorted({self.student.num_heads, self.ta.num_heads}))

    @property
    def d_ff_granule(self) -> int:
        """Neurons of one granule: every width is a whole number of granules."""
        return math.gcd(*self.widths)

    @property
    def head_granule(self) -> int:
        """Heads of one granule."""
        return math.gcd(*self.head_counts)

    def boundaries(self, axis: str) -> tuple[int, ...]:
        """The sizes at which a logical axis may be cut, rising; empty for an axis that is never
        nested.
        """
        return {"d_model": self.d_models, "heads": self.head_counts, "d_ff": self.widths}.get(
            axis, ()
        )

    def layers_of(self, count: int) -> tuple[int, ...]:
        """The `count` layers that a model of that depth runs: a prefix, or an even spread with
        first and last.
        """
        return _layers_of(count, self.ta.num_layers, self.spread)

    def mix(self, d_ff: Sequence[int]) -> SubModel:
        """The TA with its own d_ff in each layer (Mix'n'Match)."""
        return dataclasses.replace(self.ta, d_ff=tuple(d_ff))

    def check(self, sub_model: SubModel, spec: str = "") -> None:
        """Raises UserError, naming the axis, the value and what is allowed, unless the model lies
        in the nest.
        """
        where = f"sub_model {spec!r}: " if spec else ""

        def require(axis: str, value: int, allowed: Sequence[int]) -> None:
            if value not in allowed:
                choices = ", ".join(map(str, allowed))
                raise UserError(f"{where}{axis}={value} is outside the nest; allowed: {choices}")

        require("d_model", sub_model.d_model, self.d_models)
        require("num_heads", sub_model.num_heads, self.head_counts)
        if not sub_model.layers:
            raise UserError(
                f"{where}layers=0 is outside the nest; keep at least one of the "
                f"{self.ta.num_layers} layers"
            )
        for layer in sub_model.layers:
            if not 0 <= layer < self.ta.num_layers:
                raise UserError(
                    f"{where}layers={layer} is outside the nest; allowed: 0 to "
                    f"{self.ta.num_layers - 1}"
                )
        if any(a >= b for a, b in itertools.pairwise(sub_model.layers)):
            listed = ",".join(map(str, sub_model.layers))
            raise UserError(f"{where}layers={listed} must rise; sort and deduplicate them")
        for width in sub_model.d_ff:
            require("d_ff", width, self.widths)


def _layers_of(count: int, total: int, spread: bool) -> tuple[int, ...]:
    if not spread or count == 1:
        return tuple(range(count))
    return tuple(round(i * (total - 1) / (count - 1)) for i in range(count))


def expand(
    *,
    num_layers: int,
    d_model: int,
    num_heads: int,
    d_ff: int,
    ta_num_layers: int | None = None,
    ta_d_model: int | None = None,
    ta_num_heads: int | None = None,
    ta_d_ff: int | None = None,
    widths: Sequence[int] = (),
    spread: bool = False,
) -> Nest:
    """M-nesting (MatTA, section 3): makes the TA around a Student by Layer, Depth or d_model
    nesting, or several.

    Args:
      num_layers, d_model, num_heads, d_ff: the Student's sizes.
      ta_num_layers, ta_d_model, ta_num_heads, ta_d_ff: the TA's; None for the Student's own.
      widths: d_ff granularities from the Student's to the TA's; empty for these two.
      spread: the Student runs layers spread evenly over the TA's, instead of the first ones.
    """
    total = ta_num_layers or num_layers
    ta_width = ta_d_ff or d_ff
    return Nest(
        student=SubModel(
            d_model, num_heads, _layers_of(num_layers, total, spread), (d_ff,) * num_layers
        ),
        ta=SubModel(
            ta_d_model or d_model,
            ta_num_heads or num_heads,
            tuple(range(total)),
            (ta_width,) * total,
        ),
        head_dim=d_model // num_heads,
        widths=tuple(widths) or tuple(sorted({d_ff, ta_width})),
        spread=spread,
    )


def nest_of(config: Config) -> Nest:
    """The nest that a run's config describes."""
    model, nest = config.model, config.nest
    return expand(
        num_layers=model.num_layers,
        d_model=model.d_model,
        num_heads=model.num_heads,
        d_ff=model.d_ff,
        ta_num_layers=nest.num_layers,
        ta_d_model=nest.d_model,
        ta_num_heads=nest.num_heads,
        ta_d_ff=nest.d_ff,
        widths=nest.widths,
        spread=nest.student_layers == "spread",
    )
