"""The protocol of a family of models, and the table of families.

A family says how its modules are made and how they are run one after another; its modules know
nothing of nesting. Everything else, from the nested pass to extraction, follows from the names of
the axes of its weights. Nothing outside this folder asks which family it has before it.
"""

import abc
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
from immutabledict import immutabledict

from matta_jax.config import ModelConfig, register_model
from matta_jax.errors import did_you_mean
from matta_jax.models.families._schema import Inputs, Schema
from matta_jax.models.layers import Cache, Context
from matta_jax.nesting import BLOCKS, Axis, Sizes, SubModel, register_axes

Modules = Mapping[str, Any]
"""The modules beside the layers, by name, with weights of whatever size."""


class Block(abc.ABC):
    """A layer, as a family makes it: an `nnx.Module` with these methods.

    Attributes:
      parts: the methods that `__call__` runs one after another, each with the names of the
        submodules that it uses. A mix runs a part once for all its choices where these leave the
        part's weights as they are.
    """

    parts: ClassVar[Mapping[str, Sequence[str]]]

    @abc.abstractmethod
    def __call__(
        self,
        x_ND: jax.Array,
        context: Context,
        *,
        dropout: float = 0.0,
        key: jax.Array | None = None,
    ) -> jax.Array:
        """Returns the new residual stream; so does each of `parts`, of the same arguments.
        Without a `key` nothing is dropped.
        """

    def extend(
        self,
        x_ND: jax.Array,
        context: Context,
        cache: Cache | None,
    ) -> tuple[jax.Array, Cache]:
        """Runs new tokens after those that are cached, as `layers.extend_cache` does; returns the
        residual stream and the longer cache.
        """
        raise NotImplementedError

    def importance(self, x_ND: jax.Array, context: Context) -> dict[str, jax.Array]:
        """Returns how much each entry of a nested axis adds to the residual stream, by axis: its
        granules and inner entries.
        """
        raise NotImplementedError


class Family(abc.ABC):
    """A family of models: how they are made and run. Stateless.

    Attributes:
      name: as `model.name` has it.
      section: its section of the config.
      modules: the class of each module, by name, in the order in which their weights are drawn;
        each is made by `cls(build)`. `blocks` is that of a layer, a `Block`.
      exits: the modules that `leave` runs, which read the residual stream for the last time.
      joints: the modules that join an earlier pass to the next, which `join` runs.
      table: path of the table that hidden states are compared with to give logits, which
        `table_path` may say otherwise of some models. None: `leave` gives logits itself.
      scaffold_table: path of the table that outputs are compared with where a scaffold stands
        beside the models; None: the family has no scaffold.
      is_causal: whether each position attends to those before it alone.
      compares_rows: whether what a loss compares of a row follows from the batch's other rows too.
      heads: the axis of its attention's heads, or of its groups of heads.
      own_axes: axes that are in no other family's weights.
      usage: what a loaded `model` is used by, as a line of Python.
    """

    name: ClassVar[str]
    section: ClassVar[type[ModelConfig]]
    modules: ClassVar[Mapping[str, Any]]
    exits: ClassVar[Sequence[str]]
    joints: ClassVar[Sequence[str]] = ()
    table: ClassVar[str | None]
    scaffold_table: ClassVar[str | None] = None
    is_causal: ClassVar[bool] = True
    compares_rows: ClassVar[bool] = False
    heads: ClassVar[str] = "heads"
    own_axes: ClassVar[Sequence[Axis]] = ()
    usage: ClassVar[str] = (
        "logits = model.logits(model.params, tokens)  # ids [B, T]; float32 [B * T, vocabulary]"
    )

    @abc.abstractmethod
    def fixed_sizes(self, model: Any) -> dict[str, int]:
        """The sizes of the axes that no nest slices, by axis, of its config section."""

    @abc.abstractmethod
    def schema(self, model: Any) -> Schema:
        """What its models read, of its config section."""

    @abc.abstractmethod
    def enter(
        self,
        modules: Modules,
        inputs: Inputs,
        start: jax.Array | None = None,
    ) -> tuple[jax.Array, Context]:
        """Embeds a batch; returns the residual stream [N, D] and what the layers share.

        Args:
          modules: those beside the layers.
          inputs: by name.
          start: as of `Context`.
        """

    @abc.abstractmethod
    def leave(
        self, modules: Modules, x_ND: jax.Array, context: Context, sizes: Mapping[str, int]
    ) -> jax.Array:
        """Returns the normed hidden states [N, D], to be compared with the table; or logits
        [B, classes], [B] of a sigmoid; or vectors [B, E].

        Args:
          modules: those beside the layers.
          x_ND: the residual stream.
          context: as `enter` has returned it.
          sizes: of the model's nested axes, those that no weight has among them.
        """

    def earlier(self, sizes: Sizes, options: Mapping[str, Any]) -> Sizes | None:
        """The sizes of the pass that a model of these sizes runs before its own, with the same
        layers; None: it has none.
        """
        del sizes, options
        return None

    def join(
        self, modules: Modules, x_ND: jax.Array, earlier_modules: Modules, earlier_ND: jax.Array
    ) -> jax.Array:
        """Returns the residual stream that a pass starts with, of what it entered with.

        Args:
          modules: those beside the layers, of the pass's sizes.
          x_ND: of `enter`.
          earlier_modules: likewise, of the earlier pass's sizes.
          earlier_ND: the residual stream after its layers.
        """
        raise NotImplementedError

    def logits_of(self, output: jax.Array, inputs: Inputs, options: Mapping[str, Any]) -> jax.Array:
        """What a loss compares with labels: what `leave` returns, or what follows from it.

        Args:
          output: of `leave`.
          inputs: of the batch, by name.
          options: of the model.
        """
        del inputs, options
        return output

    def options(self, model: Any, layers: Sequence[int]) -> Mapping[str, Any]:
        """Facts of its config section that modules need and that are no sizes; hashable.

        Args:
          model: the section.
          layers: the TA's layers that the model runs, where layers are of several kinds.
        """
        del model, layers
        return immutabledict()

    def fields_of(self, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """The fields of its section that say what `options` says of a model's layers."""
        del options
        return immutabledict()

    def has(self, module: str, sizes: Mapping[str, int], options: Mapping[str, Any]) -> bool:
        """Whether a model of these sizes and options has a module."""
        del module, sizes, options
        return True

    def table_path(self, options: Mapping[str, Any]) -> str | None:
        """Path of the table that hidden states are compared with: tied to the embedding, or a head
        of its own.
        """
        del options
        return self.table

    def attention_flops(self, sub_model: SubModel, fixed: Mapping[str, int], seq_len: int) -> int:
        """FLOPs of a token in the products of queries, keys and values; causal ones at half."""
        # Query heads of all layers; where several share keys and values, an axis counts them.
        heads = sum(sub_model.along(self.heads)) * fixed.get("queries", 1)
        # Two products, of scores and of values, at 2 FLOPs each; a causal mask halves them.
        per_number = 2 if self.is_causal else 4
        return per_number * heads * fixed["head_dim"] * seq_len

    @property
    def entries(self) -> list[str]:
        """The modules that `enter` runs."""
        later = (BLOCKS, *self.exits, *self.joints)
        return [name for name in self.modules if name not in later]


_FAMILIES: dict[str, Family] = {}


def register(family: Family) -> Family:
    """Adds a family to the table, with its config section and its axes; returns it."""
    register_model(family.name, family.section)
    register_axes(family.own_axes)
    known_family = _FAMILIES.setdefault(family.name, family)
    if type(known_family) is not type(family):
        raise ValueError(f"family {family.name!r} is {type(known_family).__name__} already")
    return known_family


def family_of(name: str) -> Family:
    """Returns the family of a name. Raises ValueError for one that is in no table."""
    if name not in _FAMILIES:
        raise ValueError(f"family {name!r} is in no table{did_you_mean(name, _FAMILIES)}")
    return _FAMILIES[name]


def families() -> Mapping[str, Family]:
    """All families, by name."""
    return _FAMILIES
