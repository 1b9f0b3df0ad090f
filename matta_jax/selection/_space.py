"""The space of a search: which sub-models there are, what they cost, and what a budget allows."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator

import jax.numpy as jnp

from matta_jax.checkpoints import Source
from matta_jax.errors import UserError
from matta_jax.nesting import PATTERNS, Nest, SubModel
from matta_jax.packages import DTYPES


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a model may cost; None: no limit.

    Attributes:
      max_params: parameters.
      max_mb: megabytes (10^6 bytes) of its weights at `dtype`.
      max_flops_per_token: of a forward pass at the run's sequence length.
      max_ms: milliseconds on this device (`_latency.py`).
      dtype: fp32 or bf16, of `max_mb`.
    """

    max_params: float | None = None
    max_mb: float | None = None
    max_flops_per_token: float | None = None
    max_ms: float | None = None
    dtype: str = "fp32"

    def __post_init__(self) -> None:
        for name, value in self.limits().items():
            if not value > 0:
                raise UserError(f"{name}={value!r} must be greater than 0")
        if self.dtype not in DTYPES:
            raise UserError(f"dtype={self.dtype!r} must be one of {', '.join(DTYPES)}")

    def limits(self) -> dict[str, float]:
        """The limits that are set."""
        names = ("max_params", "max_mb", "max_flops_per_token", "max_ms")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a model costs, in the units of a `Budget`; `max_ms` where a latency was measured or
    predicted.
    """

    max_params: float
    max_mb: float
    max_flops_per_token: float
    max_ms: float | None = None

    def exceeds(self, budget: Budget) -> list[str]:
        """The limits that it breaks."""
        return [
            name for name, limit in budget.limits().items() if (getattr(self, name) or 0) > limit
        ]


@dataclasses.dataclass(frozen=True)
class Family:
    """Sub-models of one d_model, number of heads and set of layers, which differ in the widths of
    their layers.
    """

    d_model: int
    num_heads: int
    layers: tuple[int, ...]

    def member(self, widths: tuple[int, ...]) -> SubModel:
        """The sub-model of these widths."""
        return SubModel(self.d_model, self.num_heads, self.layers, widths)


@dataclasses.dataclass(frozen=True)
class Space:
    """All sub-models that a search may pick.

    Attributes:
      nest: of the run.
      families: of the models.
    """

    nest: Nest
    families: tuple[Family, ...]

    @property
    def size(self) -> int:
        """How many models there are."""
        return sum(len(self.nest.widths) ** len(family.layers) for family in self.families)

    def members(self) -> Iterator[SubModel]:
        """Yields every model."""
        for family in self.families:
            for widths in itertools.product(self.nest.widths, repeat=len(family.layers)):
                yield family.member(widths)

    def patterns(self) -> Iterator[tuple[str, SubModel]]:
        """Yields the named patterns with each number of wide layers, and each uniform width."""
        low, high = self.nest.widths[0], self.nest.widths[-1]
        for family in self.families:
            count = len(family.layers)
            for width in self.nest.widths:
                yield f"uniform {width}", family.member((width,) * count)
            for name, pattern in PATTERNS.items() if low != high else ():
                for wide in range(1, count):
                    widths = tuple(high if is_wide else low for is_wide in pattern(count, wide))
                    yield f"{name}:{wide}", family.member(widths)


def make_space(
    nest: Nest,
    *,
    layers: int | None = None,
    d_model: int | None = None,
    num_heads: int | None = None,
) -> Space:
    """The space of a nest: every d_model and number of heads, every depth from the Student's to the
    TA's, any widths.

    Args:
      nest: of the run.
      layers, d_model, num_heads: fix an axis.

    Raises:
      UserError: a fixed axis outside the nest.
    """

    def choose(name: str, wanted: int | None, allowed: tuple[int, ...]) -> tuple[int, ...]:
        if wanted is None:
            return allowed
        if wanted not in allowed:
            raise UserError(
                f"{name}={wanted} is outside the nest; allowed: {', '.join(map(str, allowed))}"
            )
        return (wanted,)

    depths = choose("layers", layers, tuple(range(nest.student.num_layers, nest.ta.num_layers + 1)))
    families = itertools.product(
        choose("d_model", d_model, nest.d_models),
        choose("num_heads", num_heads, nest.head_counts),
        depths,
    )
    return Space(
        nest, tuple(Family(width, heads, nest.layers_of(depth)) for width, heads, depth in families)
    )


class Costs:
    """The cost of any sub-model, from those of single layers: counts are sums over layers."""

    def __init__(self, source: Source, dtype: str):
        self._source, self._bytes = source, jnp.dtype(DTYPES[dtype]).itemsize

    def __call__(self, sub_model: SubModel) -> Cost:
        """Returns parameters, megabytes and FLOPs."""
        base, layers = self.parts(sub_model.d_model, sub_model.num_heads)
        params, flops = (
            base[i] + sum(layers[width][i] for width in sub_model.d_ff) for i in range(2)
        )
        return self._cost(params, flops)

    def linear(self, family: Family) -> tuple[Cost, dict[int, Cost]]:
        """The cost of a family's model without layers, and of a layer of each width."""
        base, layers = self.parts(family.d_model, family.num_heads)
        return self._cost(*base), {width: self._cost(*part) for width, part in layers.items()}

    def _cost(self, params: int, flops: int) -> Cost:
        return Cost(params, params * self._bytes / 1e6, flops)

    @functools.cache  # noqa: B019 - as long-lived as the search.
    def parts(
        self, d_model: int, num_heads: int
    ) -> tuple[tuple[int, int], dict[int, tuple[int, int]]]:
        """(parameters, FLOPs) of what is not layers, and of one layer of each width."""
        none = self._source.count(SubModel(d_model, num_heads, (), ()))
        layers = {}
        for width in self._source.nest.widths:
            one = self._source.count(SubModel(d_model, num_heads, (0,), (width,)))
            layers[width] = (
                one.parameters - none.parameters,
                one.flops_per_token - none.flops_per_token,
            )
        return (none.parameters, none.flops_per_token), layers


def check_feasible(space: Space, costs: Callable[[SubModel], Cost], budget: Budget) -> None:
    """Raises UserError, naming the limit, when no model of the space can keep within the budget."""
    smallest = [
        costs(family.member((space.nest.widths[0],) * len(family.layers)))
        for family in space.families
    ]
    for name, limit in budget.limits().items():
        least = min(getattr(cost, name) or 0 for cost in smallest)
        if least > limit:
            raise UserError(
                f"{name}={limit:,g} is below the smallest model of the space ({least:,.6g}"
                f"{' predicted, with slack' if name == 'max_ms' else ''}); raise it, or free an "
                "axis"
            )
    if all(cost.exceeds(budget) for cost in smallest):
        raise UserError(
            f"no model keeps within all of {', '.join(budget.limits())}; raise one of them"
        )
