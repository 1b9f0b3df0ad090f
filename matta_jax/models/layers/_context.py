"""What all layers of a pass share beside the residual stream.

Shape letters: B batch, S positions that are attended to, K positions that are hidden, D d_model.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from matta_jax.sharding import Engine, Placement, Stretches


@dataclasses.dataclass(frozen=True)
class Window:
    """How far back a layer's positions attend.

    Attributes:
      size: positions, the own among them.
      is_local: whether the layer is bound by it; may be traced.
    """

    size: int
    is_local: jax.Array

    def sees(self, distance: jax.Array) -> jax.Array:
        """Whether a position attends to one so far before it."""
        return ~self.is_local | (distance < self.size)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Hidden:
    """What is hidden of the texts of a batch, to be told by their models.

    Attributes:
      in_model_BK: positions that are hidden from the model.
      in_decoder_BK: those that are hidden from the decoder beside it.
      decoded_BSD: what the decoder reads.
    """

    in_model_BK: jax.Array
    in_decoder_BK: jax.Array
    decoded_BSD: jax.Array


# `seq_len` is the shape of arrays, and so part of what a jitted function is compiled for.
@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["seen_BS", "start", "layer", "read_BS", "documents_BT", "at_T", "hidden"],
    meta_fields=["seq_len", "engine", "stretches"],
)
@dataclasses.dataclass(frozen=True)
class Context:
    """What all layers of a pass share.

    Attributes:
      seq_len: new positions of each row.
      seen_BS: the positions that all attend to, of which each row needs one; None: each position
        attends to itself and those before it.
      start: how many positions of a row stand in its cache already, [] for all rows alike or [B];
        None: none, and there is no cache to read.
      layer: index of the layer that runs, among the model's own in a plain model and the TA's in a
        nest; None: beside the layers.
      read_BS: the positions that a text's output is made of, at least one; None: as the family
        says.
      documents_BT: which document of its row each position belongs to: it attends to no other one,
        and its place is counted from the document's first position; None: a row is of one.
      at_T: where in a window the tokens stand, of a device that has a part of it; None: from its
        first position on. What tells of documents tells of all positions then.
      hidden: of a pass that tells what is hidden from it; None: it gives its own output.
      engine: what attends within sequences; None: blocks of queries.
      stretches: how devices share the positions of a window; None: each has all of them.
    """

    seq_len: int
    seen_BS: jax.Array | None = None
    start: jax.Array | None = None
    layer: jax.Array | int | None = None
    read_BS: jax.Array | None = None
    documents_BT: jax.Array | None = None
    at_T: jax.Array | None = None
    hidden: Hidden | None = None
    engine: Engine | None = None
    stretches: Stretches | None = None

    def on(self, placement: Placement) -> "Context":
        """The same on devices."""
        return dataclasses.replace(self, engine=placement.engine, stretches=placement.stretches)

    def at(self, layer: jax.Array | int) -> "Context":
        """The same in a layer."""
        return dataclasses.replace(self, layer=layer)

    @property
    def is_in_order(self) -> bool:
        """Whether each row's new tokens stand at the first positions of one document."""
        return self.start is None and self.documents_BT is None and self.at_T is None

    @property
    def positions(self) -> jax.Array:
        """The positions of the new tokens: [T], or [B, T] where rows start at different ones, or
        are of several documents.
        """
        if self.documents_BT is not None:
            place_S = jnp.arange(self.documents_BT.shape[1])
            before = jnp.roll(self.documents_BT, 1, axis=1)
            is_first = (self.documents_BT != before) | (place_S == 0)
            in_document_BS = place_S - jax.lax.cummax(jnp.where(is_first, place_S, 0), axis=1)
            return in_document_BS if self.at_T is None else in_document_BS[:, self.at_T]
        if self.at_T is not None:
            return self.at_T
        new = jnp.arange(self.seq_len)
        if self.start is None:
            return new
        # A scalar start gives [1] + [T], and [B] gives [B, 1] + [T].
        return self.start[..., None] + new
