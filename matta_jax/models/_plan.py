"""Plan: all that a run's config says of its model, derived once."""

import dataclasses
import functools
from collections.abc import Collection

import jax

from matta_jax.config import Config, ModelConfig
from matta_jax.models._architecture import (
    Architecture,
    architecture_of,
    earlier_of,
    read_entries,
)
from matta_jax.models._plain import abstract_params, earlier_flops, logical_axes, table_of
from matta_jax.models.families import Family, Schema, family_of
from matta_jax.nesting import (
    BLOCKS,
    MEMBERS,
    SCAFFOLD,
    Counts,
    Nest,
    SubModel,
    Tree,
    count_weights,
    flatten,
    narrow_axes,
    narrow_modules,
    nest_of,
    sizes_of,
    slice_axes,
    slice_model,
    stack_of,
)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A nest of a family's models: what follows from a config before an array exists.

    Attributes:
      model: the section of the Student.
      nest: Student, TA and what lies between.
      seq_len: tokens of a sequence, by which attention is counted.
      has_scaffold: whether modules that training alone needs stand beside the TA.
    """

    model: ModelConfig
    nest: Nest
    seq_len: int
    has_scaffold: bool = False

    @property
    def family(self) -> Family:
        """Of all its models."""
        return family_of(self.model.name)

    @functools.cached_property
    def architecture(self) -> Architecture:
        """Of the TA's weights, in which members own parts by themselves where there are such."""
        plain = architecture_of(self.model, self.nest, self.nest.ta)
        owners = []
        for sub_model in self.nest.members.values():
            if sub_model.member is not None:
                owners.append(sub_model.member)
        more = {SCAFFOLD: 1} if self.has_scaffold else {}
        # Owners are indices, so the largest tells how many entries the axis needs.
        if owners:
            more[MEMBERS] = max(owners) + 1
        return dataclasses.replace(plain, fixed={**plain.fixed, **more}) if more else plain

    @functools.cached_property
    def abstract(self) -> Tree:
        """Shapes of the TA's weights."""
        return abstract_params(self.architecture)

    @functools.cached_property
    def axes(self) -> Tree:
        """Axis names of the TA's weights."""
        return logical_axes(self.architecture)

    @functools.cached_property
    def schema(self) -> Schema:
        """What its models read."""
        return self.family.schema(self.model)

    def architecture_of(self, sub_model: SubModel) -> Architecture:
        """The plain model that `sub_model` becomes when it is extracted."""
        return architecture_of(self.model, self.nest, sub_model)

    def earlier(self, sub_model: SubModel) -> SubModel | None:
        """The pass that a sub-model runs before its own; None: it has none."""
        return earlier_of(self.family, self.architecture.options, sub_model)

    def passes(self, sub_model: SubModel) -> list[SubModel]:
        """The passes that a sub-model runs, in order; the last is its own."""
        passes = [sub_model]
        while (earlier := self.earlier(passes[0])) is not None:
            passes.insert(0, earlier)
        return passes

    def slice(self, params: Tree, sub_model: SubModel) -> Tree:
        """Slices the TA's weights into those of the plain model of `sub_model`."""
        return slice_model(params, self.axes, sub_model)

    def table(self, params: Tree) -> jax.Array | None:
        """The table [V, D] that hidden states are compared with; None where there is none."""
        return table_of(self.architecture, params)

    def training_table(self, params: Tree) -> jax.Array | None:
        """The table that a loss compares outputs with: the scaffold's, where there is one."""
        if not self.has_scaffold:
            return self.table(params)
        assert self.family.scaffold_table is not None
        return flatten(params)[self.family.scaffold_table]

    def count(self, sub_model: SubModel) -> Counts:
        """Counts a sub-model, with all its passes, without touching a weight."""
        counts = self._count_pass(sub_model)
        flops = earlier_flops(self.architecture_of(sub_model), self.seq_len)
        return dataclasses.replace(counts, flops_per_token=counts.flops_per_token + flops)

    def pass_flops(self, sub_model: SubModel) -> int:
        """FLOPs of a token in a sub-model, without its earlier passes."""
        return self._count_pass(sub_model).flops_per_token

    def _count_pass(self, sub_model: SubModel) -> Counts:
        # Of the slice itself, so that what is counted is what is extracted.
        shapes = jax.eval_shape(lambda tree: self.slice(tree, sub_model), self.abstract)
        fixed = self.architecture.fixed
        attention = self.family.attention_flops(sub_model, fixed, self.seq_len)
        return count_weights(
            shapes,
            slice_axes(self.axes, sub_model),
            heads=self._heads,
            attention=attention,
            read=read_entries(self.earlier(sub_model)),
        )

    def entry_flops(self, sub_model: SubModel) -> int:
        """FLOPs of a token in what a sub-model runs before its layers; rows that are looked up
        count as none.
        """
        return self._flops_of(self.family.entries, sub_model, heads=[])

    def first_part_flops(self, sub_model: SubModel) -> int:
        """FLOPs of a token in the first part of layer 0, such as its norm and attention."""
        layer = sub_model.part((0,))
        shapes = jax.eval_shape(lambda tree: stack_of(self.slice(tree, layer)), self.abstract)
        axes = stack_of(slice_axes(self.axes, layer))

        _, modules = next(iter(self.family.modules[BLOCKS].parts.items()))
        part = {name: shapes[name] for name in modules if name in shapes}
        names = {name: axes[name] for name in part}
        # Queries meet keys where the heads are.
        has_heads = any(self.family.heads in weight_axes for weight_axes in flatten(names).values())
        fixed = self.architecture.fixed
        attention = self.family.attention_flops(layer, fixed, self.seq_len) if has_heads else 0
        return count_weights(part, names, attention=attention).flops_per_token

    def exit_flops(self, sub_model: SubModel) -> int:
        """FLOPs of a token in what a sub-model runs after its layers: its norm and its head."""
        # A head may be the embedding's table, which is a module of the entry.
        modules = [*self.family.exits, *(path.partition("/")[0] for path in self._heads)]
        return self._flops_of(modules, sub_model, heads=self._heads)

    def _flops_of(
        self, modules: Collection[str], sub_model: SubModel, *, heads: Collection[str]
    ) -> int:
        """FLOPs of a token in modules outside the layers."""
        parts = {name: part for name, part in self.abstract.items() if name in modules}
        axes = {name: self.axes[name] for name in parts}

        sizes = sizes_of(sub_model)
        shapes = jax.eval_shape(lambda tree: narrow_modules(tree, axes, sizes), parts)
        axes = {name: axes[name] for name in shapes}
        counts = count_weights(shapes, narrow_axes(axes, sizes), heads=heads)
        return counts.flops_per_token

    @property
    def _heads(self) -> list[str]:
        """The path of the table that logits are made with, where there is one."""
        path = self.architecture.table_path
        return [] if path is None else [path]


@functools.lru_cache(maxsize=32)
def plan_of(config: Config) -> Plan:
    """The plan of a run."""
    has_scaffold = config.objective.pair_loss == "smae"
    return Plan(config.model, nest_of(config), config.seq_len, has_scaffold)
