"""What an engine compiles: reading a piece of a prompt, and drawing a few tokens of all slots.

Each program has one shape whatever is in the slots: a row's numbers do not depend on who shares
its batch. A row that takes no part runs along, and what it writes into its cache at its own length
is written over before it is read.

Shape letters: S slots, T tokens of a piece, V vocab, C tokens of a turn, J new tokens, N likeliest
tokens, E tokens that end a text.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from matta_jax.models import (
    Architecture,
    Cache,
    Pool,
    cache_in,
    extend,
    logits,
    put_cache,
    sub_model_weights,
    table_of,
)
from matta_jax.nesting import SubModel, Tree
from matta_jax.packages import Model
from matta_jax.serving._sampling import Draws, cut, draw
from matta_jax.sharding import replicated

HEADS = 1
"""The axis of heads in a pool of caches."""


@dataclasses.dataclass(frozen=True)
class Lane:
    """A sub-model of resident weights, as a program is compiled for it.

    Attributes:
      resident: the architecture of the weights.
      sub_model: which sub-model, with layers that are indices into theirs.
      plain: the architecture of the plain model that it is.
      mesh: the devices that share weights and caches; None: there is one.
    """

    resident: Architecture
    sub_model: SubModel
    plain: Architecture
    mesh: Mesh | None = None

    @classmethod
    def of(cls, model: Model) -> "Lane":
        """That of a model: a sub-model in place, or a plain one by itself."""
        if model.in_place is None:
            architecture = model.architecture
            return cls(architecture, architecture.sub_model, architecture, model.mesh)
        plan, sub_model = model.in_place
        return cls(plan.architecture, sub_model, model.architecture, model.mesh)

    def begins(self, larger: "Lane") -> bool:
        """Whether it is the first layers of a larger sub-model: both then make the same of a
        text there, and cache it.
        """
        layers = self.sub_model.layers
        return (
            layers == larger.sub_model.layers[: len(layers)]
            and larger.sub_model.part(layers) == self.sub_model
        )

    def weights(self, resident: Tree) -> Tree:
        """Its weights, as `extend` reads them."""
        return sub_model_weights(self.resident, resident, self.sub_model)

    def cache(self, pool: Pool, length: int) -> Cache:
        """Its part of the caches, up to a length."""
        cache = cache_in(pool, self.plain, self.sub_model, length)
        # Heads of slots, as rows.
        return _split(cache, 0, self.mesh)

    def put(self, pool: Pool, cache: Cache) -> Pool:
        """The caches with its part in them."""
        return _split(put_cache(pool, cache, self.sub_model), HEADS, self.mesh)

    def logits(self, hidden_ND: jax.Array, table_VD: jax.Array) -> jax.Array:
        """The logits [N, V] of hidden states, on every device: draws sort them."""
        z_NV = logits(hidden_ND, table_VD)
        if self.mesh is None:
            return z_NV
        return jax.lax.with_sharding_constraint(z_NV, replicated(self.mesh))

    def table(self, weights: Tree) -> jax.Array:
        """The table that its hidden states are compared with."""
        outer = {name: part for name, part in weights.items() if name != "layers"}
        table = table_of(self.plain, outer)
        assert table is not None
        return table


def _split(tree: Tree, axis: int, mesh: Mesh | None) -> Tree:
    """Caches of which devices have heads, or rows of heads, where these divide."""
    if mesh is None:
        return tree
    return jax.tree.map(
        lambda leaf: jax.lax.with_sharding_constraint(leaf, split_sharding(leaf, axis, mesh)), tree
    )


def split_sharding(leaf: Any, axis: int, mesh: Mesh) -> NamedSharding:
    """An axis split over tensor; where it does not divide, every device has all of it."""
    divides = leaf.shape[axis] % mesh.shape["tensor"] == 0
    spec = [None] * axis + ["tensor" if divides else None]
    return NamedSharding(mesh, PartitionSpec(*spec))


@dataclasses.dataclass(frozen=True)
class Program:
    """What is compiled for.

    Attributes:
      lane: the sub-model.
      length: positions of the caches that it reads.
      capacity: most tokens of a turn.
      num_top: likeliest tokens that it tells of each.
    """

    lane: Lane
    length: int
    capacity: int = 0
    num_top: int = 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """Where each slot's text stands, and how far it may go.

    Attributes:
      steps: most tokens of this turn.
      end_ids: the tokens that end a text [E].
      token: its last token, which is not read yet [S].
      length: tokens of it that are cached [S].
      step: tokens that were drawn for it [S].
      remaining: tokens to draw at most [S]; 0: it takes no part.
    """

    steps: jax.Array
    end_ids: jax.Array
    token: jax.Array
    length: jax.Array
    step: jax.Array
    remaining: jax.Array

    def are_ends(self, ids_SJ: jax.Array) -> jax.Array:
        """Of tokens, whether they end a text [S, J]."""
        return (ids_SJ[..., None] == self.end_ids).any(-1)

    def after(self, ids_SJ: jax.Array, stands_SJ: jax.Array) -> "Rows":
        """After as many of these tokens, from the first on, as stand in each row."""
        count_S = stands_SJ.sum(1, dtype=jnp.int32)
        last_S1 = jnp.maximum(count_S - 1, 0)[:, None]
        last_S = jnp.take_along_axis(ids_SJ, last_S1, axis=1)[:, 0]
        ends_S = (stands_SJ & self.are_ends(ids_SJ)).any(1)
        return dataclasses.replace(
            self,
            token=jnp.where(count_S > 0, last_S, self.token),
            length=self.length + count_S,
            step=self.step + count_S,
            remaining=jnp.where(ends_S, 0, self.remaining - count_S),
        )


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Drawn:
    """What a turn has drawn.

    Attributes:
      ids: the tokens [S, C], of which the first `count` are a row's.
      count: [S].
      log_p: natural logarithm of each token's probability under the logits themselves, before any
        setting [S, C].
      top_ids, top_log_p: the likeliest tokens there [S, C, N].
      is_drafted: whether a draft model proposed a token [S, C].
      proposed: tokens that it proposed, whether or not they stood [S].
      tried: of them, those before which none fell [S].
    """

    ids: jax.Array
    count: jax.Array
    log_p: jax.Array
    top_ids: jax.Array
    top_log_p: jax.Array
    is_drafted: jax.Array
    proposed: jax.Array
    tried: jax.Array

    @classmethod
    def empty(cls, slots: int, capacity: int, num_top: int) -> "Drawn":
        """Before anything is drawn."""
        none = jnp.zeros(slots, jnp.int32)
        ids = jnp.zeros((slots, capacity), jnp.int32)
        log_p = jnp.zeros((slots, capacity), jnp.float32)
        tops = (slots, capacity, num_top)
        top_ids, top_log_p = jnp.zeros(tops, jnp.int32), jnp.zeros(tops, jnp.float32)
        is_drafted = jnp.zeros((slots, capacity), bool)
        return cls(ids, none, log_p, top_ids, top_log_p, is_drafted, none, none)

    def with_tokens(self, ids_SJ: jax.Array, z_SJV: jax.Array, stands_SJ: jax.Array) -> "Drawn":
        """With as many of these tokens more, of these logits, as stand in each row."""
        rows_S1 = jnp.arange(len(ids_SJ))[:, None]
        places_SJ = self.count[:, None] + jnp.arange(ids_SJ.shape[1])
        # A place beyond the last drops what is written to it.
        places_SJ = jnp.where(stands_SJ, places_SJ, self.ids.shape[1])

        def put(array: jax.Array, value: jax.Array) -> jax.Array:
            return array.at[rows_S1, places_SJ].set(value, mode="drop")

        log_p_SJV = jax.nn.log_softmax(z_SJV, axis=-1)
        log_p_SJ = jnp.take_along_axis(log_p_SJV, ids_SJ[..., None], axis=-1)[..., 0]
        top_ids, top_log_p = self.top_ids, self.top_log_p
        if num_top := top_ids.shape[-1]:
            most, likeliest = jax.lax.top_k(log_p_SJV, num_top)
            top_ids, top_log_p = put(top_ids, likeliest), put(top_log_p, most)
        # All but the last that stands were proposed: it is the larger model's own.
        is_proposed_SJ = jnp.roll(stands_SJ, -1, axis=1).at[:, -1].set(False)
        return dataclasses.replace(
            self,
            ids=put(self.ids, ids_SJ),
            count=self.count + stands_SJ.sum(1, dtype=jnp.int32),
            log_p=put(self.log_p, log_p_SJ),
            top_ids=top_ids,
            top_log_p=top_log_p,
            is_drafted=put(self.is_drafted, is_proposed_SJ),
        )


@functools.partial(jax.jit, static_argnames="program", donate_argnames="pool")
def read(
    program: Program,
    weights: Tree,
    pool: Pool,
    tokens_T: jax.Array,
    slot: jax.Array,
    start: jax.Array,
) -> Pool:
    """Reads a piece of a slot's text into its cache, from position `start` on; what fills the piece
    up at its end is written over later.
    """
    lane = program.lane
    # Of the layers that the sub-model has; the others are not touched.
    layers = lane.sub_model.layers
    of_slot = {
        i: jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, slot, 1), pool[i])
        for i in layers
    }
    part = [of_slot.get(i) for i in range(len(pool))]
    cache = lane.cache(part, program.length)
    _, cache = extend(lane.plain, lane.weights(weights), tokens_T[None], cache, start)
    part = lane.put(part, cache)

    def put(leaf: jax.Array, row: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(leaf, row, slot, 0)

    changed = list(pool)
    for i in layers:
        changed[i] = jax.tree.map(put, pool[i], part[i])
    return changed


@functools.partial(jax.jit, donate_argnames="pool")
def copy_slots(pool: Pool, source_S: jax.Array) -> Pool:
    """Gives each slot the cache of another one, or its own."""
    return jax.tree.map(lambda leaf: leaf[source_S], pool)


@functools.partial(jax.jit, static_argnames="program", donate_argnames="pool")
def decode(
    program: Program, weights: Tree, pool: Pool, rows: Rows, draws: Draws
) -> tuple[Pool, Drawn]:
    """Draws tokens of each row, one after another; a row ends at the separator."""
    lane = program.lane
    weights = lane.weights(weights)
    table = lane.table(weights)
    cache = lane.cache(pool, program.length)
    drawn = Drawn.empty(len(rows.token), program.capacity, program.num_top)

    def goes_on(carry: tuple[Any, ...]) -> jax.Array:
        step, _, rows, _, _ = carry
        return (step < rows.steps) & jnp.any(rows.remaining > 0)

    def body(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        step, cache, rows, draws, drawn = carry
        hidden_SD, cache = extend(lane.plain, weights, rows.token[:, None], cache, rows.length)
        z_SV = lane.logits(hidden_SD, table)
        ids_S = draw(cut(z_SV, draws), draws, rows.step)
        takes_part_S = rows.remaining > 0
        draws = draws.with_drawn(ids_S, takes_part_S)
        # One token of each row.
        ids_S1, takes_part_S1 = ids_S[:, None], takes_part_S[:, None]
        drawn = drawn.with_tokens(ids_S1, z_SV[:, None], takes_part_S1)
        return step + 1, cache, rows.after(ids_S1, takes_part_S1), draws, drawn

    start = (jnp.int32(0), cache, rows, draws, drawn)
    _, cache, _, _, drawn = jax.lax.while_loop(goes_on, body, start)
    return lane.put(pool, cache), drawn
