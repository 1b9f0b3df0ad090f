"""A model to run: an extracted one, or a sub-model in place in its TA."""

import dataclasses
from typing import Any

import jax
from jax.sharding import Mesh

from matta_jax.config import Config
from matta_jax.models import (
    IN_PLACE,
    Architecture,
    Inputs,
    Plan,
    Schema,
    apply,
    logical_axes,
    logits,
    sub_model_apply,
    table_of,
)
from matta_jax.nesting import Counts, SubModel, Tree, flatten
from matta_jax.sharding import ONE_DEVICE, Placement, placement


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """Weights and the function that runs them.

    Attributes:
      spec: which sub-model of its run it is.
      config: of its run.
      counts: parameters, bytes, FLOPs per token at the run's sequence length.
      params: weights; the TA's for a sub-model in place.
      origin: where it came from, for reports.
      architecture: of the plain model that it is, or would be.
      in_place: of a sub-model in place its run's plan and which one it is; None: it is plain.
      mesh: the devices that share it; None: there is one.
      compute_dtype: type of activations and matmuls, whatever that of the weights.
    """

    spec: str
    config: Config
    counts: Counts
    params: Tree
    origin: dict[str, Any]
    architecture: Architecture
    in_place: tuple[Plan, SubModel] | None = None
    mesh: Mesh | None = None
    compute_dtype: str = "float32"

    def apply(self, params: Tree, inputs: Inputs) -> jax.Array:
        """Returns the normed hidden states [B·T, D], in the compute type; of a scorer the logits
        [B, classes], or [B] of a sigmoid. Pure in its arguments, fit for `jax.jit`.

        Args:
          params: of the model.
          inputs: by name, `tokens` [B, T] among them.
        """
        where, dtype = self.placement, self.compute_dtype
        if self.in_place is None:
            return apply(self.architecture, params, inputs, dtype=dtype, placement=where)
        plan, sub_model = self.in_place
        compute = dataclasses.replace(IN_PLACE, dtype=dtype, placement=where)
        return sub_model_apply(plan, params, inputs, sub_model, compute=compute)

    @property
    def placement(self) -> Placement:
        """Where its weights lie."""
        return ONE_DEVICE if self.mesh is None else placement(self.mesh)

    @property
    def reads_examples(self) -> bool:
        """Whether it scores examples, and is no language model."""
        return self.config.model.reads_examples

    @property
    def schema(self) -> Schema:
        """What it reads."""
        return self.architecture.family.schema(self.config.model)

    def table(self, params: Tree) -> jax.Array:
        """The table [V, D] that a language model's hidden states are compared with."""
        table = table_of(self.architecture, params)
        assert table is not None
        return table

    def head(self, params: Tree) -> jax.Array:
        """As `table`, with all its columns on each device."""
        axes = logical_axes(self.architecture) if self.in_place is None else self.in_place[0].axes
        path = self.architecture.table_path
        assert path is not None
        names = flatten(axes)[path]
        return self.placement.gather(self.table(params), names)

    def logits(self, params: Tree, tokens_BT: jax.Array) -> jax.Array:
        """Returns the logits [B·T, V] of a language model, in float32."""
        return logits(self.apply(params, {"tokens": tokens_BT}), self.head(params))

    def plain(self) -> "Model":
        """This model with weights of its own: that of an extracted one is itself."""
        if self.in_place is None:
            return self
        plan, sub_model = self.in_place
        params = plan.slice(self.params, sub_model)
        return dataclasses.replace(self, params=params, in_place=None)
