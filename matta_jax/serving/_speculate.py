"""Self-speculation: a smaller sub-model proposes tokens, and the larger one reads them at once.

A draft of the larger model's layers, heads and d_model runs on the larger model's own caches: it
writes what it makes of its tokens there, and the larger model writes over it when it reads them.
Any other draft has caches of its own, of its sizes: what the larger model has cached says little to
it.

Both draw with the same random numbers: a proposal stands where it is the very token that the larger
model draws (Daliri, Musco and Suresh, arXiv 2408.07978). So a text is the one that the larger model
writes without a draft, greedy or not, token for token; what a draft changes is how many tokens come
of one pass.

Shape letters: S slots, J tokens of a round (proposals and one more), V vocab.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from matta_jax.models import Cache, Pool, extend
from matta_jax.nesting import Tree
from matta_jax.serving._programs import Drawn, Lane, Program, Rows
from matta_jax.serving._sampling import Draws, cut, draw

MOST_PROPOSALS = 8
"""Tokens that a draft proposes at once."""


@functools.partial(
    jax.jit, static_argnames=("program", "draft", "num_proposals"), donate_argnames="pools"
)
def speculate(
    program: Program,
    draft: Lane,
    num_proposals: int,
    weights: Tree,
    pools: tuple[Pool, Pool | None],
    state: tuple[Rows, Draws],
) -> tuple[tuple[Pool, Pool | None], Drawn]:
    """As `decode`, with rounds for steps: in each a row gets between one token and one more than
    are proposed.

    Args:
      program: of the larger model.
      draft: the smaller one.
      num_proposals: tokens that it proposes in a round.
      weights: as of `decode`.
      pools: the larger model's caches, and the draft's own; None: it runs on the larger model's.
      state: rows and their settings, none with a penalty.
    """
    rows, draws = state
    # Both models' parts are cut of what is as long as the program needs.
    short_pools = jax.tree.map(lambda leaf: leaf[:, :, : program.length], pools)
    has_own_cache = pools[1] is not None
    target_weights = program.lane.weights(weights)
    proposer = _Proposer(
        draft, draft.weights(weights), draws, num_proposals, program.length, has_own_cache
    )
    table = program.lane.table(target_weights)
    drawn = Drawn.empty(len(rows.token), program.capacity, program.num_top)
    num_tokens = num_proposals + 1

    def has_room(rows: Rows, drawn: Drawn) -> jax.Array:
        return (rows.remaining > 0) & (drawn.count + num_tokens <= program.capacity)

    def goes_on(carry: tuple[Any, ...]) -> jax.Array:
        step, _, rows, drawn = carry
        return (step < rows.steps) & jnp.any(has_room(rows, drawn))

    def body(carry: tuple[Any, ...]) -> tuple[Any, ...]:
        step, (short, draft_short), rows, drawn = carry
        if has_own_cache:
            draft_short, proposals_SJ = proposer(draft_short, rows)
        else:
            short, proposals_SJ = proposer(short, rows)
        tokens_SJ = jnp.concatenate([rows.token[:, None], proposals_SJ], axis=1)
        cache = program.lane.cache(short, program.length)
        hidden_ND, cache = extend(program.lane.plain, target_weights, tokens_SJ, cache, rows.length)
        short = program.lane.put(short, cache)
        z_SJV = program.lane.logits(hidden_ND, table).reshape(*tokens_SJ.shape, -1)
        rows, drawn = _settle(rows, drawn, draws, proposals_SJ, z_SJV, has_room(rows, drawn))
        return step + 1, (short, draft_short), rows, drawn

    start = (jnp.int32(0), short_pools, rows, drawn)
    _, short_pools, _, drawn = jax.lax.while_loop(goes_on, body, start)

    def put(leaf: jax.Array, part: jax.Array) -> jax.Array:
        return (
            part if part.shape == leaf.shape else jax.lax.dynamic_update_slice(leaf, part, (0,) * 4)
        )

    return jax.tree.map(put, pools, short_pools), drawn


@dataclasses.dataclass(frozen=True)
class _Proposer:
    """A draft model in a program.

    Attributes:
      lane: of the draft.
      weights: of it.
      draws: the rows' settings.
      num_proposals: tokens to propose.
      length: positions of the caches.
      has_own_cache: whether the caches are its own. It reads its last proposal too then, which
        nobody else writes there.
    """

    lane: Lane
    weights: Tree
    draws: Draws
    num_proposals: int
    length: int
    has_own_cache: bool

    def __call__(self, short: Pool, rows: Rows) -> tuple[Pool, jax.Array]:
        """Returns the caches, and what it proposes [S, J - 1]."""
        table = self.lane.table(self.weights)

        def propose(
            carry: tuple[Cache, jax.Array], step: jax.Array
        ) -> tuple[tuple[Cache, jax.Array], jax.Array]:
            cache, token_S = carry
            hidden_SD, cache = extend(
                self.lane.plain, self.weights, token_S[:, None], cache, rows.length + step
            )
            z_SV = cut(self.lane.logits(hidden_SD, table), self.draws)
            drawn_S = draw(z_SV, self.draws, rows.step + step)
            return (cache, drawn_S), drawn_S

        start = (self.lane.cache(short, self.length), rows.token)
        num_steps = self.num_proposals + self.has_own_cache
        (cache, _), proposals = jax.lax.scan(propose, start, jnp.arange(num_steps))
        return self.lane.put(short, cache), proposals[: self.num_proposals].T


def _settle(
    rows: Rows,
    drawn: Drawn,
    draws: Draws,
    proposals_SJ: jax.Array,
    z_SJV: jax.Array,
    takes_part_S: jax.Array,
) -> tuple[Rows, Drawn]:
    """Draws the larger model's own tokens, as many as its reading of the proposals is right for.

    A token is right where all proposals before it are what was drawn there. So those that stand are
    the proposals that are right, and one more.
    """
    num_tokens = z_SJV.shape[1]

    def draw_token(z_SV: jax.Array, place: jax.Array) -> jax.Array:
        return draw(cut(z_SV, draws), draws, rows.step + place)

    places = jnp.arange(num_tokens)
    ids_SJ = jax.vmap(draw_token, in_axes=(1, 0), out_axes=1)(z_SJV, places)
    is_right_SJ = proposals_SJ == ids_SJ[:, :-1]
    # Nothing comes after an end, or after the last token of a text.
    goes_on_SJ = ~rows.are_ends(ids_SJ[:, :-1]) & (places[1:] < rows.remaining[:, None])
    steps_SJ = jnp.concatenate([takes_part_S[:, None], is_right_SJ & goes_on_SJ], axis=1)
    stands_SJ = jnp.cumprod(steps_SJ, axis=1).astype(bool)
    drawn = drawn.with_tokens(ids_SJ, z_SJV, stands_SJ)
    drawn = dataclasses.replace(
        drawn,
        proposed=drawn.proposed + takes_part_S * (num_tokens - 1),
        tried=drawn.tried + (stands_SJ[:, :-1] & goes_on_SJ).sum(1, dtype=jnp.int32),
    )
    return rows.after(ids_SJ, stands_SJ), drawn
