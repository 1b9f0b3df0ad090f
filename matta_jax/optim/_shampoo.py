"""Blocked, distributed Shampoo as one Optax transform.

For each block G [m, n] of a matrix, at step t:

    L ← β₂ L + (1-β₂) G Gᵀ                 R ← β₂ R + (1-β₂) Gᵀ G
    every k steps:  P_L = (L + ε λ_max(L) I)^(-1/4),  P_R = (R + ε λ_max(R) I)^(-1/4)
    U = P_L G P_R, rescaled to the norm of the grafting update

All of it is done block by block in one `shard_map`, in which each device has its share of the
blocks: gradients come in whole, and one all-gather for each bucket of equal blocks returns the
updates. (Left to itself, the partitioner computes every root on every device.) Blocks end at a
nest's boundaries and norms are taken per block, so the Student's preconditioners are a subset of
the TA's blocks and the slice of the TA's update is the Student's own.

Shape letters: K blocks of a bucket (on this device, inside the step), m and n rows and columns of a
block.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from matta_jax.config import ShampooConfig
from matta_jax.optim._batches import expand, positive
from matta_jax.optim._blocks import Blocking
from matta_jax.optim._distribution import distributed_step, replicate
from matta_jax.optim._grafting import graft_unblocked
from matta_jax.optim._plan import blocking_of
from matta_jax.optim._state import (
    BlockState,
    ShampooState,
    initial_state,
    state_without_params,
    unblocked_leaves,
)


def scale_by_shampoo(
    settings: ShampooConfig | None = None, *, views: Any = None, mesh: Mesh | None = None
) -> optax.GradientTransformation:
    """Preconditions matrices by Shampoo, block by block; all else by the grafting update.

    Momentum, weight decay, clipping and the learning rate are other transforms of the chain.

    >>> optimizer = optax.chain(
    ...     optim.scale_by_shampoo(ShampooConfig(block_size=256)), optax.trace(0.9, nesterov=True),
    ...     optax.add_decayed_weights(0.1), optax.scale_by_learning_rate(1e-3))

    Args:
      settings: `config.ShampooConfig(...)`:
        block_size: largest side of a block.
        beta2: decay of the statistics, and of the grafting update's second moment; 1 sums them up.
        epsilon: ε, relative to the largest eigenvalue of a block's statistics.
        precondition_every: k, steps between two computations of the roots.
        start_step: steps that take the grafting update alone.
        staggered: compute the roots of every k-th block in each step, in place of all of them in
          every k-th.
        root: `newton` (coupled Newton, matmuls only) or `eigh`.
        root_dtype: type that roots are kept in: float32 or bfloat16.
        grafting: whose norm the update takes: `rmsprop`, `adam` (both with bias correction) or
          `sgd`.
        graft_scope: whether norms are taken of each `block` or of each whole matrix, `parameter`.
        max_dim: matrices with a longer side take the grafting update alone
          (`beyond_max_dim="graft"`), or are preconditioned on the other side, to the power -1/2
          (`one_sided`).
        block_multiple: what the number of blocks of one shape is padded to; devices share blocks of
          one shape when their number divides it.
      views: a tree like the weights with a `MatrixView` or None (no blocks) for each; by default
        the last two axes of each weight are its matrix, and those before them a stack.
      mesh: devices to share the work; the state's blocks lie as `block_sharding` says.

    References: Gupta et al. 2018; Anil et al. 2020 (blocks, grafting); Shi et al. 2023
      (distribution).
    """
    shampoo = settings or ShampooConfig()

    # Blocks are planned from shapes alone, at trace time: no plan is kept between steps.
    def init(params: Any) -> ShampooState:
        if _is_placeholder(params):
            return state_without_params()
        return initial_state(shampoo, blocking_of(shampoo, params, views), params)

    def update(updates: Any, state: ShampooState, params: Any = None) -> tuple[Any, ShampooState]:
        del params
        return _update(shampoo, blocking_of(shampoo, updates, views), updates, state, mesh)

    return optax.GradientTransformation(init, update)


def _is_placeholder(params: Any) -> bool:
    """Whether these are the weights by which `optax.tree.map_params` asks where a state has some: a
    tree without a leaf, of a class of Optax that it keeps to itself.
    """
    package = type(params).__module__.split(".")[0]
    return package == "optax" and not isinstance(params, tuple) and not jax.tree.leaves(params)


def _update(
    settings: ShampooConfig,
    blocking: Blocking,
    gradients: Any,
    state: ShampooState,
    mesh: Mesh | None,
) -> tuple[Any, ShampooState]:
    leaves, treedef = jax.tree.flatten(gradients)
    updates, buckets = _update_blocks(settings, blocking, leaves, state, mesh)

    # Moments are float32 whatever the gradients are.
    unblocked = unblocked_leaves(blocking, gradients)
    unblocked_gradients = {path: leaves[i].astype(jnp.float32) for path, i in unblocked.items()}
    grafted, moments, failures = graft_unblocked(
        settings, unblocked_gradients, state.rest, state.count
    )
    for path, index in unblocked.items():
        updates[index] = grafted[path]

    flat_updates = [updates[index].astype(leaf.dtype) for index, leaf in enumerate(leaves)]
    new_state = ShampooState(state.count + 1, buckets, moments, state.failures + failures)
    return jax.tree.unflatten(treedef, flat_updates), new_state


def _update_blocks(
    settings: ShampooConfig,
    blocking: Blocking,
    leaves: Sequence[jax.Array],
    state: ShampooState,
    mesh: Mesh | None,
) -> tuple[dict[int, jax.Array], dict[str, BlockState]]:
    """Returns the updates of the leaves with blocks, by index, and the new state of the buckets."""
    # Each device cuts its share out of whole gradients.
    gathered = []
    for leaf, view in zip(leaves, blocking.views, strict=True):
        gathered.append(leaf if view is None else replicate(leaf, mesh))

    buckets, blocks, squares = {}, {}, {}
    for name, bucket in blocking.buckets.items():
        step = distributed_step(settings, bucket, mesh)
        gradient_KMN = blocking.cut(name, gathered).astype(jnp.float32)
        blocks[name], squares[name], buckets[name] = step(
            gradient_KMN, state.buckets[name], state.count
        )

    if settings.graft_scope == "parameter":
        blocks = _rescale_matrices(blocking, blocks, squares)

    # Replicated on both sides, or the partitioner permutes pieces between devices.
    joined = blocking.join(blocks)
    updates = {index: replicate(leaf, mesh) for index, leaf in joined.items()}
    return updates, buckets


def _rescale_matrices(
    blocking: Blocking, blocks: dict[str, jax.Array], squares: dict[str, Any]
) -> dict[str, jax.Array]:
    """Rescales all blocks of each matrix by one factor, to the norm of its grafting update."""
    # Matrices are numbered leaf by leaf.
    counts = [blocking.num_matrices(leaf) for leaf in range(len(blocking.shapes))]
    offsets = [sum(counts[:leaf]) for leaf in range(len(counts))]
    matrix_ids = {name: np.array(blocking.matrix_ids(name, offsets)) for name in blocks}

    # Sums over the blocks of each of S matrices; padding is of none, and left out.
    totals_S2 = jnp.zeros((sum(counts), 2))
    for name, squares_K2 in squares.items():
        ids = matrix_ids[name]
        totals_S2 = totals_S2.at[ids].add(squares_K2[: len(ids)])
    factors = jnp.sqrt(totals_S2[:, 1]) / positive(jnp.sqrt(totals_S2[:, 0]))

    rescaled = {}
    for name, update_KMN in blocks.items():
        ids = matrix_ids[name]
        padding = update_KMN.shape[0] - len(ids)
        factor_K = jnp.pad(factors[ids], (0, padding))
        rescaled[name] = update_KMN * expand(factor_K)
    return rescaled
