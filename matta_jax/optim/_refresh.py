"""When the roots of blocks are computed anew, and which are accepted."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from matta_jax.config import ShampooConfig
from matta_jax.optim._batches import all_finite, expand
from matta_jax.optim._roots import inverse_pth_root
from matta_jax.optim._state import BlockState

# A root that is further off is not accepted.
_MAX_RESIDUAL = 0.1
# What is reported of a root that is infinitely far off, so that metrics stay finite.
_LARGEST_RESIDUAL = 1e9


class _Roots(NamedTuple):
    """What a computation of roots changes in a `BlockState`."""

    roots: dict[str, jax.Array]
    age: jax.Array
    failures: jax.Array
    residual: jax.Array


def refresh_roots(
    settings: ShampooConfig, state: BlockState, count: jax.Array, *, first: jax.Array | int
) -> BlockState:
    """Computes roots anew: of all blocks in every k-th step, or of every k-th block.

    Args:
      settings: of the transform.
      state: of the blocks of this device.
      count: steps done.
      first: index in the bucket of this device's first block.
    """
    roots = _Roots(state.roots, state.age, state.failures, state.residual)
    if settings.staggered and settings.precondition_every > 1:
        roots = _refresh_every_kth_block(settings, state.statistics, roots, count - first)
    else:
        roots = _refresh_in_every_kth_step(settings, state.statistics, roots, count)
    return state._replace(**roots._asdict())


def _refresh_in_every_kth_step(
    settings: ShampooConfig, statistics: dict[str, jax.Array], roots: _Roots, count: jax.Array
) -> _Roots:
    def compute(statistics: dict[str, jax.Array], roots: _Roots) -> _Roots:
        return _new_roots(settings, statistics, roots)

    def skip(statistics: dict[str, jax.Array], roots: _Roots) -> _Roots:
        del statistics
        return roots

    is_due = count % settings.precondition_every == 0
    return jax.lax.cond(is_due, compute, skip, statistics, roots)


def _refresh_every_kth_block(
    settings: ShampooConfig, statistics: dict[str, jax.Array], roots: _Roots, turn: jax.Array
) -> _Roots:
    period = settings.precondition_every
    num_turns = math.ceil(roots.age.shape[0] / period)
    # Block i of the bucket has its turn when i = count (mod k), however many devices there are.
    index = turn % period + period * jnp.arange(num_turns)

    # Past the end, a clipped read repeats the last block, and the write drops it.
    due_statistics, due_roots = jax.tree.map(
        lambda x: jnp.take(x, index, axis=0, mode="clip"), (statistics, roots)
    )
    computed = _new_roots(settings, due_statistics, due_roots)
    return jax.tree.map(lambda x, new: x.at[index].set(new, mode="drop"), roots, computed)


def _new_roots(settings: ShampooConfig, statistics: dict[str, jax.Array], old: _Roots) -> _Roots:
    """Computes roots. One that is no good leaves the old one, and counts as a failure."""
    # Two sides share the power -1/2 of the whole.
    p = 2 * len(statistics)
    roots, residuals, zeros = {}, [], []
    for side, matrices_KNN in statistics.items():
        roots[side], residual_K, is_zero_K = inverse_pth_root(
            matrices_KNN, p, epsilon=settings.epsilon, method=settings.root
        )
        residuals.append(residual_K)
        zeros.append(is_zero_K)

    finite_K = all_finite(roots)
    residual_K = functools.reduce(jnp.maximum, residuals)
    # A block that never had a gradient has no root, which is no failure.
    idle_K = functools.reduce(jnp.logical_or, zeros)
    good_K = finite_K & (residual_K < _MAX_RESIDUAL) & ~idle_K

    accepted = {}
    for side, root_KNN in roots.items():
        rounded_KNN = root_KNN.astype(settings.root_dtype)
        accepted[side] = jnp.where(expand(good_K), rounded_KNN, old.roots[side])

    residual_K = jnp.where(jnp.isnan(residual_K), jnp.inf, residual_K)
    residual_K = jnp.minimum(residual_K, _LARGEST_RESIDUAL)
    return _Roots(
        roots=accepted,
        age=jnp.where(good_K, 0, old.age),
        failures=old.failures + (~good_K & ~idle_K),
        residual=jnp.where(idle_K, old.residual, residual_K),
    )
