"""The one table of axes: what each axis of a weight is, from which all else about weights follows.

A weight names its axes, in order: `("layers", "d_model", "d_ff")` is a stack of matrices that read
the residual stream and produce hidden neurons. From the roles of these axes follow what is a matrix
and what it reads and writes, what decays, what initialisation counts as inputs, what lies where on
a mesh, what an optimiser may orthogonalise or cut into blocks, and what a sub-model may slice.

A nested axis that may be sharded over tensor-parallel devices is stored as two axes, `X_granules`
and `X`: the logical axis X is their product, a prefix of granules is a prefix of X, and only the
inner axis is ever sharded, so that slicing moves nothing between devices.
"""

import dataclasses
import enum
from collections.abc import Iterable

from matta_jax.errors import did_you_mean

Names = tuple[str, ...]
"""The names of a weight's axes, in order."""

Positions = tuple[int, ...]
"""Positions of axes in a weight's names."""

GRANULES = "_granules"
LAYERS = "layers"
MEMBERS = "members"
THOUGHTS = "thoughts"
"""The axis of what joins a model's earlier passes to the next: a size for each of these passes."""
RECYCLED = "recycled"
"""The axis of what they leave: the residual stream of the widest."""
SCAFFOLD = "scaffold"
"""The axis, of one entry, of what stands beside models while they are trained. No sub-model has it:
of a module with a weight of this axis nothing is extracted, counted or proved.
"""
RESIDUAL = "d_model"
"""The axis of the residual stream, which every layer reads and writes."""


class Role(enum.Enum):
    """What the entries of an axis are.

    Attributes:
      STACK: independent copies: of a weight for each layer or member, or of a projection.
      ENTRIES: rows of a table, one for each value of an input.
      FEATURES: numbers that a matrix sums over or produces; a nest may slice them.
      FIXED: parts of a feature that are never sliced, such as the inside of a head.
    """

    STACK = "stack"
    ENTRIES = "entries"
    FEATURES = "features"
    FIXED = "fixed"


@dataclasses.dataclass(frozen=True)
class Axis:
    """One axis of weights.

    Attributes:
      name: as weights name it.
      role: what its entries are.
      mesh: the mesh axis that it is sharded over; None: whole on every device.
      is_picked: of a stack: whether a sub-model picks entries of it. Otherwise its copies are parts
        of one projection, such as query, key and value, and always go together.
      word: its name in specs and config fields; None: as `name`.
      fields: the config fields that set its size, as errors name them; None: from its word.
    """

    name: str
    role: Role
    mesh: str | None = None
    is_picked: bool = False
    word: str | None = None
    fields: str | None = None

    @property
    def is_granulated(self) -> bool:
        """Whether it is stored with granules: it may be sliced, and sharded over tensor."""
        return self.role is Role.FEATURES and self.mesh == "tensor"

    @property
    def config_fields(self) -> str:
        """The config fields that set its size."""
        if self.fields:
            return self.fields
        name = self.word or self.name
        return f"model.{name}, nest.{name}"


_TABLE: dict[str, Axis] = {}


def register_axes(axes: Iterable[Axis]) -> None:
    """Adds axes to the table, for a family that brings its own. The same axis may come again.

    Raises:
      ValueError: an axis of this name is another one.
    """
    for axis in axes:
        known_axis = _TABLE.setdefault(axis.name, axis)
        if known_axis != axis:
            raise ValueError(f"axis {axis.name!r} is {known_axis}, and cannot be {axis} too")


register_axes(
    [
        Axis(LAYERS, Role.STACK, is_picked=True, word="layers", fields="model.num_layers"),
        Axis(MEMBERS, Role.STACK, is_picked=True),
        Axis(THOUGHTS, Role.STACK, is_picked=True),
        Axis(SCAFFOLD, Role.STACK, is_picked=True),
        Axis("qkv", Role.STACK),
        Axis("kv", Role.STACK),
        Axis("gate", Role.STACK),
        Axis("vocab", Role.ENTRIES, mesh="tensor", fields="model.vocab_size"),
        Axis("positions", Role.ENTRIES, fields="model.max_len"),
        Axis("categories", Role.ENTRIES, fields="model.categories"),
        # Layers gather what lies over fsdp before they slice it, so this axis needs no granules.
        Axis(RESIDUAL, Role.FEATURES, mesh="fsdp"),
        Axis("heads", Role.FEATURES, mesh="tensor", word="num_heads"),
        # A head of keys and values with its queries.
        Axis("kv_heads", Role.FEATURES, mesh="tensor", word="num_kv_heads"),
        Axis("d_ff", Role.FEATURES, mesh="tensor", fields="nest.widths"),
        Axis("classes", Role.FEATURES, fields="model.num_classes"),
        # Of vectors that are cut after the last layer: no weight of a model has it.
        Axis("embed", Role.FEATURES),
        Axis("types", Role.ENTRIES, fields="model.num_types"),
        Axis("dense", Role.FEATURES, fields="model.num_dense"),
        Axis(RECYCLED, Role.FEATURES, fields="model.thinking_d_model"),
        Axis("queries", Role.FIXED),
        Axis("head_dim", Role.FIXED),
    ]
)


def axis_of(name: str) -> Axis:
    """Returns the axis of a name, with or without granules. Raises KeyError for an unknown one."""
    logical = name.removesuffix(GRANULES)
    if logical not in _TABLE:
        raise KeyError(f"axis {logical!r} is in no table{did_you_mean(logical, _TABLE)}")
    return _TABLE[logical]


def axis_of_word(word: str) -> Axis | None:
    """Returns the axis that specs and config fields call `word`; None when there is none."""
    for name, axis in _TABLE.items():
        if word_of(name) == word:
            return axis
    return None


def axes_of_role(role: Role) -> list[Axis]:
    """Returns the axes of the table that have a role."""
    return [axis for axis in _TABLE.values() if axis.role is role]


def word_of(name: str) -> str:
    """What specs and config fields call an axis."""
    axis = axis_of(name)
    return axis.word or axis.name


def unit_sizes() -> dict[str, int]:
    """A size of 1 for every axis and its granules: those of a blank module."""
    names = list(_TABLE)
    for name, axis in _TABLE.items():
        if axis.is_granulated:
            names.append(name + GRANULES)
    return dict.fromkeys(names, 1)


def logical_names(names: Names) -> Names:
    """The axis names without granules."""
    return tuple(name for name in names if not name.endswith(GRANULES))


def is_granulated(name: str, names: Names) -> bool:
    """Whether this inner axis of a weight has granules beside it."""
    return name + GRANULES in names


def mesh_axis(name: str) -> str | None:
    """The mesh axis that an axis of a weight is sharded over: granules never are."""
    return None if name.endswith(GRANULES) else axis_of(name).mesh


def matrix_view(names: Names) -> tuple[Positions, Positions] | None:
    """The positions of the (input, output) axes of a weight that multiplies activations.

    In the order of its names a matrix has what it reads, then what it writes: its second feature
    begins the output. A fixed axis belongs to the feature before it. Copies of one projection
    (query, key, value) count among what it writes; copies for layers and members to neither.

    Returns:
      None for all other weights: tables, norms and biases.
    """
    logical = logical_names(names)
    roles = {name: axis_of(name).role for name in logical}
    features = [name for name in logical if roles[name] is Role.FEATURES]
    # Norms and biases have one feature, to which they are applied entry by entry.
    if len(features) < 2 or Role.ENTRIES in roles.values():
        return None

    # Everything up to the second feature is read: the first one and its fixed axes, such as the
    # head_dim of heads. A stack may stand anywhere among them.
    first_output = logical.index(features[1])
    inputs = {name for name in logical[:first_output] if roles[name] is not Role.STACK}
    outputs = {name for name in logical if name not in inputs and not axis_of(name).is_picked}
    return _positions_of(names, inputs), _positions_of(names, outputs)


def table_view(names: Names) -> tuple[Positions, Positions] | None:
    """The positions of the (entry, feature) axes of an embedding table; None for all others."""
    logical = logical_names(names)
    entries = {name for name in logical if axis_of(name).role is Role.ENTRIES}
    features = {name for name in logical if axis_of(name).role is Role.FEATURES}
    if not entries or not features:
        return None
    return _positions_of(names, entries), _positions_of(names, features)


def _positions_of(names: Names, logical: set[str]) -> Positions:
    # Granules count as part of their axis, so that a product over these positions is its size.
    return tuple(i for i, name in enumerate(names) if name.removesuffix(GRANULES) in logical)


def fan_in(names: Names) -> Positions:
    """The positions of the axes that a weight sums over: a matrix's inputs, a table's features (as
    a head reads it); none of all others.
    """
    matrix = matrix_view(names)
    if matrix is not None:
        return matrix[0]
    table = table_view(names)
    return () if table is None else table[1]


def is_decayed(names: Names) -> bool:
    """Whether weight decay applies: to matrices and tables, not to norms and biases."""
    return matrix_view(names) is not None or table_view(names) is not None


def writes_residual(names: Names) -> bool:
    """Whether a weight is a matrix whose output is the residual stream."""
    matrix = matrix_view(names)
    return matrix is not None and RESIDUAL in {names[i] for i in matrix[1]}


def reads_residual(names: Names) -> bool:
    """Whether a weight is a matrix whose input is the residual stream."""
    matrix = matrix_view(names)
    return matrix is not None and RESIDUAL in {names[i] for i in matrix[0]}


def stack_positions(names: Names) -> Positions:
    """The positions of the axes that only number copies of a matrix: stacks and granules."""
    positions = []
    for position, name in enumerate(names):
        if name.endswith(GRANULES) or axis_of(name).role is Role.STACK:
            positions.append(position)
    return tuple(positions)
