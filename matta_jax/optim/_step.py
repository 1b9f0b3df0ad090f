"""One step of the blocks of a bucket: statistics, roots, and the update that they make."""

import jax
import jax.numpy as jnp

from matta_jax.config import ShampooConfig
from matta_jax.optim._batches import all_finite, expand, frobenius_norm, matmul, outer, positive
from matta_jax.optim._grafting import decayed, grafting_update, update_moments
from matta_jax.optim._refresh import refresh_roots
from matta_jax.optim._state import BlockState

# The updates [K, m, n]; with norms per matrix, squared norms [K, 2]; the state.
BlockStep = tuple[jax.Array, jax.Array | None, BlockState]


def step_blocks(
    settings: ShampooConfig,
    gradient_KMN: jax.Array,
    state: BlockState,
    count: jax.Array,
    *,
    first: jax.Array | int,
) -> BlockStep:
    """Steps the blocks `first` and following of a bucket.

    Returns:
      The updates; with norms per matrix, the squared norms [K, 2] of these and of the grafting
      update, by which they have yet to be rescaled (None with norms per block); and the state.
    """
    state, finite_K = _accumulate(settings, gradient_KMN, state)
    gradient_KMN = jnp.where(expand(finite_K), gradient_KMN, 0.0)
    state = refresh_roots(settings, state, count, first=first)

    graft_KMN = grafting_update(settings, gradient_KMN, state.moments, count)
    graft_KMN = jnp.where(expand(finite_K), graft_KMN, 0.0)

    update_KMN = _precondition(gradient_KMN, state.roots)
    # Before it has roots, and in the first steps, a block takes the grafting update itself.
    ready_K = (state.age >= 0) & (count >= settings.start_step)
    update_KMN = jnp.where(expand(ready_K), update_KMN, graft_KMN)

    if settings.graft_scope == "block":
        factor_K = frobenius_norm(graft_KMN) / positive(frobenius_norm(update_KMN))
        return update_KMN * expand(factor_K), None, state

    # The norm of a matrix needs all its blocks, some of which are on other devices.
    squares_K2 = jnp.stack(
        [jnp.sum(update_KMN**2, axis=(1, 2)), jnp.sum(graft_KMN**2, axis=(1, 2))], axis=-1
    )
    return update_KMN, squares_K2, state


def _accumulate(
    settings: ShampooConfig, gradient_KMN: jax.Array, state: BlockState
) -> tuple[BlockState, jax.Array]:
    """Adds a gradient to statistics and moments; returns too which blocks it is finite in [K]."""
    statistics = {}
    for side, average in state.statistics.items():
        statistics[side] = decayed(settings.beta2, average, outer(gradient_KMN, side))
    moments = update_moments(settings, gradient_KMN, state.moments)

    # A block whose gradient is not finite, or overflows, keeps its state and stands still.
    finite_K = all_finite((gradient_KMN, statistics, moments))
    statistics, moments = jax.tree.map(
        lambda new, old: jnp.where(expand(finite_K), new, old),
        (statistics, moments),
        (state.statistics, state.moments),
    )

    state = state._replace(
        statistics=statistics,
        moments=moments,
        age=jnp.where(state.age >= 0, state.age + 1, -1),
        failures=state.failures + ~finite_K,
    )
    return state, finite_K


def _precondition(gradient_KMN: jax.Array, roots: dict[str, jax.Array]) -> jax.Array:
    """P_L G P_R, or one side of it."""
    # Roots may be kept in bfloat16; the products are of float32.
    update_KMN = gradient_KMN
    if "L" in roots:
        update_KMN = matmul(roots["L"].astype(jnp.float32), update_KMN)
    if "R" in roots:
        update_KMN = matmul(update_KMN, roots["R"].astype(jnp.float32))
    return update_KMN
