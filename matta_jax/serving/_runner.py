"""The device's side of an engine: weights, caches, and the programs that run on them.

Shape letters: S slots, T tokens of a piece, V vocab.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from matta_jax.config import FLOAT_TYPES
from matta_jax.errors import check_choice
from matta_jax.models import (
    Architecture,
    Pool,
    init_pool,
    resident_axes,
    resident_weights,
    split_stack,
)
from matta_jax.nesting import Names, Tree, logical_names, outside_blocks
from matta_jax.packages import Model
from matta_jax.serving import _programs
from matta_jax.serving._completions import Completion, Token
from matta_jax.serving._programs import HEADS, Drawn, Lane, Program, Rows, split_sharding
from matta_jax.serving._sampling import Draws, Sampling, draws_of
from matta_jax.serving._slots import Slot
from matta_jax.serving._speculate import MOST_PROPOSALS, speculate
from matta_jax.sharding import weight_shardings

PIECE = 64
"""Tokens of a prompt that are read at once."""
MOST_TOPS = 20
"""Likeliest tokens that a program tells of each."""
LONGEST_TURN = 32
"""Tokens of a turn."""

_SHORTEST = 64  # Positions of the shortest program.
_GREEDY = Sampling(temperature=0)


@dataclasses.dataclass(frozen=True)
class Proposals:
    """What a smaller model proposes in a turn.

    Attributes:
      lane: the model.
      count: tokens of a round.
      has_own_cache: whether it runs on caches of its own, of `add_draft`.
    """

    lane: Lane
    count: int
    has_own_cache: bool


class Runner:
    """Reads and draws for the slots of an engine.

    Args:
      model: a plain one, or any sub-model in place of a run. Its devices share weights and caches,
        and weights are kept in the type that it computes in.
      takes_weights: whether those of its layers are deleted once they are here, one after another.
      slots: texts that stand side by side.
      cache_dtype: of keys and values, float32 or bfloat16.
      end_ids: that end a text.
      allowed: bool [V], ids that may be drawn; None: all.

    Raises:
      UserError: a type that caches cannot have.
    """

    def __init__(
        self,
        model: Model,
        *,
        takes_weights: bool,
        slots: int,
        cache_dtype: str,
        end_ids: tuple[int, ...],
        allowed: np.ndarray | None = None,
    ):
        # Before weights are taken over: who is refused has them yet.
        check_choice("cache_dtype", cache_dtype, FLOAT_TYPES)
        resident = model.architecture if model.in_place is None else model.in_place[0].architecture
        self.limit = model.config.data.seq_len
        self.end_ids = end_ids
        self.vocab_size = resident.vocab_size
        self._allowed = allowed
        self._weights = _resident_on(model, resident, takes_weights)
        # Whole pieces: one that is filled up at its end stays inside, and proposals do too.
        self._room = -(-(self.limit + MOST_PROPOSALS + 1) // PIECE) * PIECE
        make_pool = functools.partial(
            init_pool, resident, slots=slots, length=self._room, dtype=cache_dtype
        )
        self._pool = _pool_on(model.mesh, make_pool)
        self._mesh, self._slots, self._cache_dtype = model.mesh, slots, cache_dtype
        self._draft_pool: Pool | None = None
        self._compiled: set[tuple[str, ...]] = set()

    def add_draft(self, lane: Lane) -> None:
        """Makes caches of a draft's own, of its sizes."""

        def make() -> Pool:
            pool = init_pool(
                lane.plain, slots=self._slots, length=self._room, dtype=self._cache_dtype
            )
            # Found by the indices that its layers have in the resident model.
            by_layer = dict(zip(lane.sub_model.layers, pool, strict=True))
            return [by_layer.get(layer) for layer in range(len(self._pool))]

        self._draft_pool = _pool_on(self._mesh, make)

    @property
    def bytes(self) -> tuple[int, int]:
        """Of the weights, and of the caches."""
        weights, pools = (
            sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
            for tree in (self._weights, (self._pool, self._draft_pool))
        )
        return weights, pools

    def copy(self, source_S: np.ndarray) -> None:
        """Gives each slot the cache of another one, or its own."""
        self._pool = _programs.copy_slots(self._pool, source_S)

    def read(self, place: int, slot: Slot) -> None:
        """Reads the next piece of a slot's text."""
        assert slot.lane is not None
        piece = slot.ids[slot.length : min(slot.length + PIECE, len(slot.ids) - 1)]
        self._pool = self._with_piece(self._pool, slot.lane, place, piece, slot.length)
        slot.length += len(piece)
        slot.num_read = slot.length

    def read_for_draft(self, lane: Lane, place: int, slot: Slot) -> None:
        """Reads into a draft's own caches what of a slot's text it has not read yet."""
        assert self._draft_pool is not None
        # From where a piece begins: one must not reach beyond the room.
        start = slot.draft_length - slot.draft_length % PIECE
        while slot.draft_length < slot.length:
            piece = slot.ids[start : min(start + PIECE, slot.length)]
            self._draft_pool = self._with_piece(self._draft_pool, lane, place, piece, start)
            start += len(piece)
            slot.draft_length = start

    def _with_piece(
        self, pool: Pool, lane: Lane, place: int, piece: Sequence[int], start: int
    ) -> Pool:
        """Caches with a piece of a slot's text in them, from position `start` on."""
        tokens_T = np.zeros(PIECE, np.int32)
        tokens_T[: len(piece)] = piece
        program = Program(lane, self._length_for(start + PIECE))
        self._tell("read", program)
        place_and_start = np.int32(place), np.int32(start)
        return _programs.read(program, self._weights, pool, tokens_T, *place_and_start)

    def draw(
        self,
        lane: Lane,
        slots: Sequence[Slot],
        places: Sequence[int],
        steps: int,
        draft: Proposals | None = None,
    ) -> Drawn:
        """Draws tokens for some slots, all of one sub-model.

        Args:
          lane: the sub-model.
          slots: all of them.
          places: which of them take part.
          steps: most tokens, or rounds of a draft.
          draft: what a smaller model proposes in a round; None: there is none.

        Returns:
          Numpy arrays.
        """
        tokens_of_step = 1 if draft is None else draft.count + 1
        # Of all slots: what is written into a cache must not fall outside, and no row takes more
        # than its capacity.
        most_tokens = min(steps, LONGEST_TURN) * tokens_of_step
        longest = max(slot.length for slot in slots) + min(most_tokens, LONGEST_TURN)
        length = self._length_for(longest + tokens_of_step)
        draws = self._draws(slots, places)
        wants_tops = any(_completion(slots[i]).request.num_top for i in places)
        program = Program(lane, length, LONGEST_TURN, MOST_TOPS if wants_tops else 0)
        rows = self._rows(slots, places, steps)
        settings = [name for name, value in vars(draws).items() if value is not None]
        if draft is None:
            self._tell("decode", program, *settings)
            self._pool, drawn = _programs.decode(program, self._weights, self._pool, rows, draws)
        else:
            self._tell(f"speculate {draft.count}", program, *settings)
            pools = (self._pool, self._draft_pool if draft.has_own_cache else None)
            pools, drawn = speculate(
                program, draft.lane, draft.count, self._weights, pools, (rows, draws)
            )
            self._pool = pools[0]
            if draft.has_own_cache:
                self._draft_pool = pools[1]
        return jax.device_get(drawn)

    def _draws(self, slots: Sequence[Slot], places: Sequence[int]) -> Draws:
        taking_part: Mapping[int, Slot] = {i: slots[i] for i in places}
        samplings, indices, texts = [], [], []
        for i in range(len(slots)):
            slot = taking_part.get(i)
            request = None if slot is None else _completion(slot).request
            samplings.append(_GREEDY if request is None else request.sampling)
            indices.append(0 if request is None else request.index)
            # All of a text, whatever of it the model still reads.
            texts.append([] if slot is None else _completion(slot).text_ids)
        return draws_of(
            samplings, indices, texts, vocab_size=self.vocab_size, allowed=self._allowed
        )

    def _rows(self, slots: Sequence[Slot], places: Sequence[int], steps: int) -> Rows:
        token, step, remaining = (np.zeros(len(slots), np.int32) for _ in range(3))
        length = np.array([slot.length for slot in slots], np.int32)
        for i in places:
            token[i] = slots[i].ids[-1]
            step[i] = len(_completion(slots[i]).tokens)
            remaining[i] = slots[i].remaining(self.limit)
        numbers = (
            np.int32(steps),
            np.array(self.end_ids, np.int32),
            token,
            length,
            step,
            remaining,
        )
        return Rows(*map(jnp.asarray, numbers))

    def _length_for(self, length: int) -> int:
        """Positions that a program is compiled for: powers of two, so that they are few."""
        return min(max(1 << (length - 1).bit_length(), _SHORTEST), self._room)

    def _tell(self, name: str, program: Program, *settings: str) -> None:
        key = (name, str(program), *settings)
        if key in self._compiled:
            return
        self._compiled.add(key)
        sizes = ", ".join(f"{axis} {size}" for axis, size in program.lane.sub_model.sizes.items())
        logging.info("compiles %s for %d positions (%s)", name, program.length, sizes)


def tokens_of(drawn: Drawn, i: int) -> list[Token]:
    """A row's tokens of a turn."""
    tokens = []
    for j in range(int(drawn.count[i])):
        pairs = zip(drawn.top_ids[i, j].tolist(), drawn.top_log_p[i, j].tolist(), strict=True)
        log_p, is_drafted = float(drawn.log_p[i, j]), bool(drawn.is_drafted[i, j])
        tokens.append(Token(int(drawn.ids[i, j]), log_p, tuple(pairs), is_drafted))
    return tokens


def _resident_on(model: Model, resident: Architecture, takes_weights: bool) -> Tree:
    """The resident weights in the model's compute type, each device its own part. Of what is taken
    over one stack at a time stands there twice.
    """
    mesh, dtype = model.mesh, model.compute_dtype

    def take(weight: jax.Array, names: Names) -> list[jax.Array]:
        parts = _split(weight, names, dtype, mesh)
        if takes_weights:
            # What runs on it yet keeps its memory.
            jax.block_until_ready(parts)
            weight.delete()
        return parts

    weights = resident_weights(resident, model.params, take)
    weights = jax.tree.map(lambda weight: weight.astype(dtype), weights)
    if takes_weights:
        # Those outside of the layers, where the engine has copies of them.
        for weight in jax.tree.leaves(outside_blocks(model.params)):
            if weight.dtype != dtype:
                weight.delete()
    if mesh is None:
        return weights
    return jax.device_put(weights, weight_shardings(weights, resident_axes(resident), mesh))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _split(weight: jax.Array, names: Names, dtype: str, mesh: Mesh | None) -> list[jax.Array]:
    parts = split_stack(weight.astype(dtype), names)
    if mesh is None:
        return parts
    shardings = weight_shardings(parts, [logical_names(names)] * len(parts), mesh)
    return jax.lax.with_sharding_constraint(parts, shardings)


def _pool_on(mesh: Mesh | None, make: Callable[[], Pool]) -> Pool:
    """Empty caches, each device those of its heads."""
    if mesh is None:
        return make()
    shardings = jax.tree.map(lambda leaf: split_sharding(leaf, HEADS, mesh), jax.eval_shape(make))
    return jax.jit(make, out_shardings=shardings)()


def _completion(slot: Slot) -> Completion:
    assert slot.completion is not None
    return slot.completion
