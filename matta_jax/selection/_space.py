"""The space of a search: which sub-models there are, what they cost, and what a budget allows."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence

import jax.numpy as jnp
from immutabledict import immutabledict

from matta_jax import storage
from matta_jax.checkpoints import Source
from matta_jax.errors import UserError, check_choice, shorten
from matta_jax.nesting import LAYERS, PATTERNS, Nest, Sizes, SubModel, word_of
from matta_jax.packages import DTYPES

# Beyond any cost; a whole number may be larger than a float can be.
_TOO_LARGE = 1e30


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a model may cost; None: no limit.

    Attributes:
      max_params: parameters.
      max_mb: megabytes (10^6 bytes) of its weights at `dtype`.
      max_flops_per_token: of a forward pass at the run's sequence length.
      max_ms: milliseconds of a `Workload`.
      dtype: fp32 or bf16, of `max_mb` and `max_vector_bytes`.
      max_vector_bytes: of an embedder's vector, as an index stores it at `dtype`.
      max_file_mb: megabytes of its GGUF file, with all that stands in it.
    """

    max_params: float | None = None
    max_mb: float | None = None
    max_flops_per_token: float | None = None
    max_ms: float | None = None
    dtype: str = "fp32"
    max_vector_bytes: float | None = None
    max_file_mb: float | None = None

    def __post_init__(self) -> None:
        for name, value in self.limits().items():
            # Written so that it refuses NaN too.
            if not storage.is_number(value) or not 0 < value < _TOO_LARGE:
                raise UserError(
                    f"{name}={shorten(value)} must be greater than 0, and finite; leave it "
                    "out for no limit"
                )
        check_choice("dtype", self.dtype, DTYPES)

    def limits(self) -> dict[str, float]:
        """The limits that are set."""
        limits = {
            "max_params": self.max_params,
            "max_mb": self.max_mb,
            "max_flops_per_token": self.max_flops_per_token,
            "max_ms": self.max_ms,
            "max_vector_bytes": self.max_vector_bytes,
            "max_file_mb": self.max_file_mb,
        }
        return {name: limit for name, limit in limits.items() if limit is not None}


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a model costs, in the units of a `Budget`; `max_ms` where a latency was measured or
    predicted, `max_vector_bytes` of an embedder, `max_file_mb` where it is written as GGUF.
    """

    max_params: float
    max_mb: float
    max_flops_per_token: float
    max_ms: float | None = None
    max_vector_bytes: float = 0.0
    max_file_mb: float | None = None

    def exceeds(self, budget: Budget) -> list[str]:
        """The limits that it breaks."""
        broken = []
        for name, limit in budget.limits().items():
            # A latency that nobody measured or predicted breaks no limit.
            amount = getattr(self, name) or 0
            if amount > limit:
                broken.append(name)
        return broken


@dataclasses.dataclass(frozen=True)
class Group:
    """Sub-models of one set of layers, which differ in what each layer chooses.

    Attributes:
      layers: of all of them.
      sizes: what all layers have alike, by axis.
    """

    layers: tuple[int, ...]
    sizes: Sizes

    def member(self, options: Sequence[Sizes]) -> SubModel:
        """The sub-model whose layers choose these options."""
        per_layer = {}
        # All options name the same axes.
        for axis in options[0]:
            per_layer[axis] = tuple(option[axis] for option in options)
        return SubModel(self.layers, self.sizes, per_layer)

    def uniform(self, option: Sizes) -> SubModel:
        """The sub-model all of whose layers choose one option."""
        return SubModel(self.layers, {**self.sizes, **option})

    def with_layers(self, layers: tuple[int, ...]) -> "Group":
        """The group of other layers."""
        return dataclasses.replace(self, layers=layers)


@dataclasses.dataclass(frozen=True)
class Space:
    """All sub-models that a search may pick.

    Attributes:
      nest: of the run.
      groups: of the models.
    """

    nest: Nest
    groups: tuple[Group, ...]

    @property
    def options(self) -> tuple[Sizes, ...]:
        """What each layer chooses from, smallest first."""
        return self.nest.layer_options

    @property
    def size(self) -> int:
        """How many models there are."""
        return sum(len(self.options) ** len(group.layers) for group in self.groups)

    def members(self) -> Iterator[SubModel]:
        """Yields every model."""
        for group in self.groups:
            for options in itertools.product(self.options, repeat=len(group.layers)):
                yield group.member(options)

    def patterns(self) -> Iterator[tuple[str, SubModel]]:
        """Yields the named patterns with each number of wide layers, and each uniform width."""
        narrow, wide = self.options[0], self.options[-1]
        for group in self.groups:
            depth = len(group.layers)
            for option in self.options:
                yield f"uniform {_label(option)}", group.uniform(option)

            # With one option all patterns are the uniform model.
            if narrow == wide:
                continue
            for name, pattern in PATTERNS.items():
                # Of none and of all layers wide, a pattern is uniform, and was yielded above.
                for num_wide in range(1, depth):
                    is_wide = pattern(depth, num_wide)
                    options = [wide if layer_is_wide else narrow for layer_is_wide in is_wide]
                    yield f"{name}:{num_wide}", group.member(options)

    def forms(self) -> Iterator[SubModel]:
        """Yields of each group what may have another form in files: each uniform model, and a mix
        of the narrowest and the widest layers.
        """
        ends = (self.options[0], self.options[-1])
        for group in self.groups:
            yield from map(group.uniform, self.options)
            if len(self.options) > 1 and len(group.layers) > 1:
                yield group.member([ends[i % 2] for i in range(len(group.layers))])

    def group_of(self, sub_model: SubModel) -> Group:
        """The group that a model would be of."""
        return Group(sub_model.layers, self.nest.sizes_alike(sub_model))


def _label(option: Sizes) -> str:
    """An option in words: its size, where it is one."""
    if len(option) == 1:
        return str(next(iter(option.values())))
    return " ".join(f"{word_of(axis)}={size}" for axis, size in option.items())


def check_count(name: str, value: object, least: int, most: int) -> None:
    """Raises UserError for what is no whole number within these bounds."""
    if not storage.is_whole(value):
        raise UserError(f"{name}={shorten(value)} must be a whole number")
    if value < least:
        raise UserError(f"{name}={shorten(value)} must be at least {least}")
    if value > most:
        raise UserError(f"{name}={shorten(value)} must be at most {most:,}")


def make_space(
    nest: Nest,
    *,
    layers: int | None = None,
    d_model: int | None = None,
    num_heads: int | None = None,
    num_kv_heads: int | None = None,
    embed: int | None = None,
) -> Space:
    """The space of a nest: every d_model and number of heads, every depth from the Student's to the
    TA's, any widths.

    Args:
      nest: of the run.
      layers, d_model, num_heads, num_kv_heads, embed: fix an axis.

    Raises:
      UserError: a fixed axis outside the nest.
    """
    fixed = {
        "d_model": d_model,
        "num_heads": num_heads,
        "num_kv_heads": num_kv_heads,
        "embed": embed,
    }
    depths = tuple(range(nest.student.num_layers, nest.num_layers + 1))
    depths = _chosen(LAYERS, layers, depths)

    # Axes of the nest that all layers have alike; the others are what the options are of.
    axes = [axis for axis in nest.allowed if axis not in nest.by_layer]
    words = [word_of(axis) for axis in axes]
    for name, size in fixed.items():
        if size is not None and name not in words:
            raise UserError(
                f"{name}={size} cannot be fixed: in this run not all layers have one alike"
            )
    choices = []
    for axis in axes:
        word = word_of(axis)
        sizes = _chosen(word, fixed.get(word), nest.allowed[axis])
        choices.append(sizes)

    groups = []
    for *group_sizes, depth in itertools.product(*choices, depths):
        by_axis = immutabledict(sorted(zip(axes, group_sizes, strict=True)))
        groups.append(Group(nest.layers_of(depth), by_axis))
    return Space(nest, tuple(groups))


def _chosen(name: str, size: int | None, allowed: tuple[int, ...]) -> tuple[int, ...]:
    """The allowed sizes, or the one that a user fixes."""
    if size is None:
        return allowed
    # 3.0 and True would be equal to a size.
    if type(size) is not int or size not in allowed:
        choices = ", ".join(map(str, allowed))
        raise UserError(f"{name}={size} is outside the nest; allowed: {choices}")
    return (size,)


class Costs:
    """The cost of any sub-model, from those of single layers: counts are sums over layers."""

    def __init__(self, source: Source, dtype: str):
        self._source = source
        self._bytes = jnp.dtype(DTYPES[dtype]).itemsize

    def __call__(self, sub_model: SubModel) -> Cost:
        """Returns parameters, megabytes and FLOPs."""
        parameters, flops = self._counts(sub_model)
        return self._cost(parameters, flops, sub_model.sizes)

    def linear(self, group: Group) -> tuple[Cost, list[Cost]]:
        """The cost of a group's model without layers, and of a layer of each option."""
        base, layers = self._parts(group.sizes)
        return self._cost(*base, group.sizes), [self._cost(*part) for part in layers]

    def _counts(self, sub_model: SubModel) -> tuple[int, int]:
        nest = self._source.nest
        base, layers = self._parts(nest.sizes_alike(sub_model))
        parameters, flops = base
        for layer in sub_model.layers:
            option = nest.option_of(sub_model, layer)
            # None is for layers that it skips.
            assert option is not None
            layer_parameters, layer_flops = layers[option]
            parameters += layer_parameters
            flops += layer_flops
        return parameters, flops

    def _cost(self, parameters: int, flops: int, sizes: Sizes | None = None) -> Cost:
        """Of a model or a part of one; a vector is of the model alone, and no layer's."""
        vector_bytes = 0 if sizes is None else sizes.get("embed", 0) * self._bytes
        mb = parameters * self._bytes / 1e6
        return Cost(parameters, mb, flops, max_vector_bytes=vector_bytes)

    @functools.cache  # noqa: B019 - as long-lived as the search.
    def _parts(self, sizes: Sizes) -> tuple[tuple[int, int], list[tuple[int, int]]]:
        """(parameters, FLOPs) of what is not layers, and of one layer of each option."""
        base = self._source.count(SubModel((), sizes))
        layers = []
        for option in self._source.nest.layer_options:
            # A model of one layer, whichever it is: layers of equal sizes cost the same.
            counts = self._source.count(SubModel((0,), {**sizes, **option}))
            parameters = counts.parameters - base.parameters
            flops = counts.flops_per_token - base.flops_per_token
            layers.append((parameters, flops))
        return (base.parameters, base.flops_per_token), layers


def check_feasible(space: Space, costs: Callable[[SubModel], Cost], budget: Budget) -> None:
    """Raises UserError, naming the limit, when no model of the space can keep within the budget."""
    smallest = [costs(group.uniform(space.options[0])) for group in space.groups]
    for name, limit in budget.limits().items():
        least = min(getattr(cost, name) or 0 for cost in smallest)
        if least > limit:
            slack = " predicted, with slack" if name == "max_ms" else ""
            raise UserError(
                f"{name}={limit:,g} is below the smallest model of the space "
                f"({least:,.6g}{slack}); raise it, or free an axis"
            )

    # Each limit may be kept by some group, and yet no group keep all of them.
    if all(cost.exceeds(budget) for cost in smallest):
        raise UserError(
            f"no model keeps within all of {', '.join(budget.limits())}; raise one of them"
        )
