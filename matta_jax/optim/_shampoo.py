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

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from matta_jax.nesting import path_name
from matta_jax.optim._blocks import Blocking, Bucket, MatrixView, default_view, make_blocking
from matta_jax.optim._roots import inverse_pth_root

_MAX_RESIDUAL = 0.1  # A root that is further off is not taken.
_GRAFT_EPSILON = 1e-8
_GRAFT_B1 = 0.9


class Moments(NamedTuple):
    """The grafting update's own moments: `mu` of adam, `nu` of rmsprop and adam; None where there
    is none.
    """

    mu: Any
    nu: Any


class BlockState(NamedTuple):
    """The state of a bucket's blocks.

    Attributes:
      statistics: L [K, m, m] and R [K, n, n], where the side has a preconditioner.
      roots: P_L and P_R alike; what was last accepted, at first the identity.
      moments: of the grafting update [K, m, n].
      age: steps since the roots were accepted [K], int32; -1: never.
      failures: times that a gradient or a root was not finite or a root too far off [K], int32.
      residual: |P^p (L + ε λ_max I) - I| of the last roots tried, the larger of both sides [K].
    """

    statistics: dict[str, jax.Array]
    roots: dict[str, jax.Array]
    moments: Moments
    age: jax.Array
    failures: jax.Array
    residual: jax.Array


class ShampooState(NamedTuple):
    """The state of `scale_by_shampoo`.

    Attributes:
      count: steps done, int32 [].
      buckets: by shape of block, such as `128x64`.
      rest: moments of the weights without blocks, each by its path.
      failures: gradients of these that were not finite, int32 [].
    """

    count: jax.Array  # type: ignore[assignment]
    buckets: dict[str, BlockState]
    rest: Moments
    failures: jax.Array


@dataclasses.dataclass(frozen=True)
class Shampoo:
    """The settings of `scale_by_shampoo`, which says what they mean."""

    block_size: int = 128
    beta2: float = 0.99
    epsilon: float = 1e-6
    precondition_every: int = 10
    start_step: int = 10
    staggered: bool = False
    root: str = "newton"
    root_dtype: str = "float32"
    grafting: str = "rmsprop"
    graft_scope: str = "block"
    max_dim: int = 8192
    beyond_max_dim: str = "graft"
    block_multiple: int = 8

    def blocking(self, params: Any, views: Any = None) -> Blocking:
        """Plans the blocks of a tree of weights (anything with `shape`)."""
        leaves, treedef = jax.tree.flatten(params)
        default = jax.tree.unflatten(treedef, [default_view(leaf.shape) for leaf in leaves])
        given: list[MatrixView | None] = []
        jax.tree.map(
            lambda _, view: given.append(view), params, default if views is None else views
        )
        return make_blocking(
            leaves,
            given,
            block_size=self.block_size,
            block_multiple=self.block_multiple,
            max_dim=self.max_dim,
            one_sided=self.beyond_max_dim == "one_sided",
        )


def scale_by_shampoo(
    settings: Shampoo | None = None, *, views: Any = None, mesh: Mesh | None = None
) -> optax.GradientTransformation:
    """Preconditions matrices by Shampoo, block by block; all else by the grafting update.

    Momentum, weight decay, clipping and the learning rate are other transforms of the chain.

    >>> optimizer = optax.chain(
    ...     optim.scale_by_shampoo(optim.Shampoo(block_size=256)), optax.trace(0.9, nesterov=True),
    ...     optax.add_decayed_weights(0.1), optax.scale_by_learning_rate(1e-3))

    Args:
      settings: `Shampoo(...)`:
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
    settings = settings or Shampoo()

    def init(params: Any) -> ShampooState:
        blocking = settings.blocking(params, views)
        rest = {}
        for path, leaf, view in zip(
            tree_paths(params), jax.tree.leaves(params), blocking.views, strict=True
        ):
            if view is None:
                rest[path] = jnp.zeros(leaf.shape)
        return ShampooState(
            count=jnp.zeros((), jnp.int32),
            buckets={
                name: _init_bucket(settings, bucket) for name, bucket in blocking.buckets.items()
            },
            rest=_init_moments(settings, rest),
            failures=jnp.zeros((), jnp.int32),
        )

    def update(updates: Any, state: ShampooState, params: Any = None) -> tuple[Any, ShampooState]:
        del params
        blocking = settings.blocking(updates, views)
        leaves, treedef = jax.tree.flatten(updates)
        whole = [
            _replicated(leaf, mesh) if view else leaf
            for leaf, view in zip(leaves, blocking.views, strict=True)
        ]
        buckets, blocks, squares = {}, {}, {}
        for name, bucket in blocking.buckets.items():
            step = _shared(settings, bucket, mesh)
            cut_KMN = blocking.cut(name, whole).astype(jnp.float32)
            blocks[name], squares[name], buckets[name] = step(
                cut_KMN, state.buckets[name], state.count
            )
        if settings.graft_scope == "parameter":
            blocks = _rescale_matrices(blocking, blocks, squares)
        # Replicated on both sides, or the partitioner permutes pieces between devices.
        results = {i: _replicated(leaf, mesh) for i, leaf in blocking.join(blocks).items()}
        rest = {
            path: i
            for i, (path, view) in enumerate(zip(tree_paths(updates), blocking.views, strict=True))
            if not view
        }
        own, moments, failures = _graft_rest(
            settings, {path: leaves[i].astype(jnp.float32) for path, i in rest.items()}, state
        )
        results |= {i: own[path] for path, i in rest.items()}
        results_flat = [results[i].astype(leaf.dtype) for i, leaf in enumerate(leaves)]
        new_state = ShampooState(state.count + 1, buckets, moments, state.failures + failures)
        return jax.tree.unflatten(treedef, results_flat), new_state

    return optax.GradientTransformation(init, update)


def block_sharding(num_blocks: int, mesh: Mesh) -> NamedSharding:
    """Splits blocks over as many mesh axes as their number divides over, in the mesh's order."""
    return NamedSharding(mesh, P(_block_axes(num_blocks, mesh)))


def _block_axes(num_blocks: int, mesh: Mesh) -> tuple[str, ...]:
    axes: tuple[str, ...] = ()
    parts = 1
    for axis, size in mesh.shape.items():
        if size > 1 and num_blocks % (parts * size) == 0:
            axes, parts = (*axes, axis), parts * size
    return axes


def diagnostics(opt_state: Any) -> dict[str, jax.Array]:
    """Returns the sum of `failures` and the largest `residual` of the Shampoo in a chain; {} where
    there is none.
    """
    state = find_shampoo(opt_state)
    if state is None:
        return {}
    blocks = state.buckets.values()
    failures = sum((jnp.sum(block.failures) for block in blocks), state.failures)
    worst = functools.reduce(
        jnp.maximum, [jnp.max(block.residual) for block in blocks], jnp.zeros(())
    )
    return {"shampoo_failures": failures.astype(jnp.float32), "shampoo_residual": worst}


def find_shampoo(opt_state: Any) -> ShampooState | None:
    """Returns the `ShampooState` in the state of a chain, or None."""
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, ShampooState))
    return next((node for node in nodes if isinstance(node, ShampooState)), None)


def tree_paths(tree: Any) -> list[str]:
    """The path of each leaf, such as `blocks/0/mlp/w_in`."""
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [path_name(path) for path, _ in paths]


def _replicated(leaf: jax.Array, mesh: Mesh | None) -> jax.Array:
    if mesh is None or mesh.size == 1:
        return leaf
    return jax.lax.with_sharding_constraint(leaf, NamedSharding(mesh, P()))


def _init_moments(settings: Shampoo, zeros: Any) -> Moments:
    return Moments(
        mu=jax.tree.map(jnp.zeros_like, zeros) if settings.grafting == "adam" else None,
        nu=None if settings.grafting == "sgd" else zeros,
    )


def _init_bucket(settings: Shampoo, bucket: Bucket) -> BlockState:
    sizes = {side: bucket.shape["LR".index(side)] for side in bucket.sides}
    K = bucket.size

    def eyes(size: int) -> jax.Array:
        return jnp.broadcast_to(jnp.eye(size, dtype=settings.root_dtype), (K, size, size))

    return BlockState(
        statistics={side: jnp.zeros((K, size, size)) for side, size in sizes.items()},
        roots={side: eyes(size) for side, size in sizes.items()},
        moments=_init_moments(settings, jnp.zeros((K, *bucket.shape))),
        age=jnp.full((K,), -1, jnp.int32),
        failures=jnp.zeros((K,), jnp.int32),
        residual=jnp.zeros((K,)),
    )


def _shared(settings: Shampoo, bucket: Bucket, mesh: Mesh | None):
    """Returns the step of a bucket, each device doing its share: whole gradients in, whole updates
    out.
    """
    axes = () if mesh is None else _block_axes(bucket.size, mesh)
    if mesh is None or not axes:
        return lambda cut_KMN, state, count: _step_blocks(settings, cut_KMN, state, count, first=0)
    share = bucket.size // math.prod(mesh.shape[axis] for axis in axes)

    def on_device(cut_KMN: jax.Array, state: BlockState, count: jax.Array):
        first = jax.lax.axis_index(axes) * share
        own_KMN = jax.lax.dynamic_slice_in_dim(cut_KMN, first, share)
        updates_KMN, squares_K2, state = _step_blocks(settings, own_KMN, state, count, first=first)
        gather = lambda x: jax.lax.all_gather(x, axes, tiled=True)
        return gather(updates_KMN), None if squares_K2 is None else gather(squares_K2), state

    return jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(P(), P(axes), P()),
        out_specs=(P(), P(), P(axes)),
        check_vma=False,
    )


def _step_blocks(
    settings: Shampoo, gradient_KMN: jax.Array, state: BlockState, count: jax.Array, *, first
):
    """Steps the blocks `first` and following.

    Returns:
      The updates; with norms per matrix, the squared norms [K, 2] of these and of the grafting
      update, by which they have yet to be rescaled (None with norms per block); and the state.
    """
    statistics = {
        side: _decayed(settings.beta2, old, _outer(gradient_KMN, side))
        for side, old in state.statistics.items()
    }
    moments = _update_moments(settings, gradient_KMN, state.moments)
    # A block whose gradient is not finite, or overflows, keeps its state and stands still.
    finite_K = _all_finite((gradient_KMN, statistics, moments))
    statistics, moments = jax.tree.map(
        lambda new, old: jnp.where(_wide(finite_K), new, old),
        (statistics, moments),
        (state.statistics, state.moments),
    )
    gradient_KMN = jnp.where(_wide(finite_K), gradient_KMN, 0.0)
    state = state._replace(
        statistics=statistics,
        moments=moments,
        age=jnp.where(state.age >= 0, state.age + 1, -1),
        failures=state.failures + ~finite_K,
    )
    state = _refresh(settings, state, count, first=first)

    graft_KMN = jnp.where(_wide(finite_K), _graft(settings, gradient_KMN, moments, count), 0.0)
    update_KMN = gradient_KMN
    for side, root_KNN in state.roots.items():
        root_KNN = root_KNN.astype(jnp.float32)
        update_KMN = _matmul(root_KNN, update_KMN) if side == "L" else _matmul(update_KMN, root_KNN)
    ready_K = (state.age >= 0) & (count >= settings.start_step)
    update_KMN = jnp.where(_wide(ready_K), update_KMN, graft_KMN)
    if settings.graft_scope == "block":
        return update_KMN * _wide(_norm(graft_KMN) / _positive(_norm(update_KMN))), None, state
    squares_K2 = jnp.stack([jnp.sum(x**2, axis=(1, 2)) for x in (update_KMN, graft_KMN)], axis=-1)
    return update_KMN, squares_K2, state


def _refresh(settings: Shampoo, state: BlockState, count: jax.Array, *, first) -> BlockState:
    """Computes roots anew: of all blocks in every k-th step, or of every k-th block."""
    every, share = settings.precondition_every, state.age.shape[0]
    parts = (state.statistics, state.roots, state.age, state.failures, state.residual)
    if settings.staggered and every > 1:
        # Block i of the bucket has its turn when i = count (mod k), however many devices there are.
        index = (count - first) % every + every * jnp.arange(-(-share // every))
        taken = jax.tree.map(lambda x: jnp.take(x, index, axis=0, mode="clip"), parts)
        new = _new_roots(settings, *taken)
        put = lambda old, value: old.at[index].set(value, mode="drop")
        new = jax.tree.map(put, parts[1:], new)
    else:
        due = count % every == 0
        new = jax.lax.cond(
            due, lambda parts: _new_roots(settings, *parts), lambda parts: parts[1:], parts
        )
    roots, age, failures, residual = new
    return state._replace(roots=roots, age=age, failures=failures, residual=residual)


def _new_roots(settings: Shampoo, statistics, roots, age, failures, residual):
    """Returns roots, age, failures and residuals after computing roots. A root that is no good
    leaves the old one.
    """
    p = 2 * len(statistics)
    computed = {
        side: inverse_pth_root(matrices, p, epsilon=settings.epsilon, method=settings.root)
        for side, matrices in statistics.items()
    }
    finite_K = _all_finite({side: root for side, (root, _, _) in computed.items()})
    worst_K = functools.reduce(jnp.maximum, [error for _, error, _ in computed.values()])
    idle_K = functools.reduce(jnp.logical_or, [is_zero for _, _, is_zero in computed.values()])
    good_K = finite_K & (worst_K < _MAX_RESIDUAL) & ~idle_K
    taken = {
        side: jnp.where(_wide(good_K), root.astype(settings.root_dtype), roots[side])
        for side, (root, _, _) in computed.items()
    }
    worst_K = jnp.minimum(jnp.where(jnp.isnan(worst_K), jnp.inf, worst_K), 1e9)
    return (
        taken,
        jnp.where(good_K, 0, age),
        failures + (~good_K & ~idle_K),
        jnp.where(idle_K, residual, worst_K),
    )


def _rescale_matrices(
    blocking: Blocking, blocks: dict[str, jax.Array], squares: dict[str, jax.Array]
) -> dict[str, jax.Array]:
    """Rescales all blocks of each matrix by one factor, to the norm of its grafting update."""
    counts = [blocking.num_matrices(leaf) for leaf in range(len(blocking.shapes))]
    offsets = [sum(counts[:leaf]) for leaf in range(len(counts))]
    ids = {name: np.array(blocking.matrix_ids(name, offsets)) for name in blocks}
    total = jnp.zeros((sum(counts), 2))
    for name, squares_K2 in squares.items():
        total = total.at[ids[name]].add(squares_K2[: len(ids[name])])
    factor = jnp.sqrt(total[:, 1]) / _positive(jnp.sqrt(total[:, 0]))
    result = {}
    for name, update_KMN in blocks.items():
        own_K = jnp.pad(factor[ids[name]], (0, update_KMN.shape[0] - len(ids[name])))
        result[name] = update_KMN * _wide(own_K)
    return result


def _graft_rest(
    settings: Shampoo, gradients: dict[str, jax.Array], state: ShampooState
) -> tuple[dict[str, jax.Array], Moments, jax.Array]:
    """Returns the grafting updates of the weights without blocks, their moments, and how many were
    not finite.
    """
    moments = _update_moments(settings, gradients, state.rest)
    updates, failures = {}, jnp.zeros((), jnp.int32)
    for path, gradient in gradients.items():
        own, old = (
            Moments(*(part and part[path] for part in both)) for both in (moments, state.rest)
        )
        finite = jnp.all(_all_finite(jax.tree.map(jnp.atleast_1d, (gradient, own))))
        for part, new, kept in zip(moments, own, old, strict=True):
            if part is not None:
                part[path] = jnp.where(finite, new, kept)
        safe = jnp.where(finite, gradient, 0.0)
        own = Moments(*(part and part[path] for part in moments))
        updates[path] = jnp.where(finite, _graft(settings, safe, own, state.count), 0.0)
        failures = failures + ~finite
    return updates, moments, failures


def _update_moments(settings: Shampoo, gradients: Any, old: Moments) -> Moments:
    mu, nu = old
    if mu is not None:
        mu = jax.tree.map(lambda g, m: _decayed(_GRAFT_B1, m, g), gradients, mu)
    if nu is not None:
        nu = jax.tree.map(lambda g, v: _decayed(settings.beta2, v, g**2), gradients, nu)
    return Moments(mu, nu)


def _graft(settings: Shampoo, gradient: jax.Array, moments: Moments, count: jax.Array) -> jax.Array:
    """The grafting update; with bias correction, as the moments begin at zero."""
    if moments.nu is None:
        return gradient
    corrected = lambda moment, decay: moment / (1 - decay ** (count + 1.0)) if decay < 1 else moment
    numerator = gradient if moments.mu is None else corrected(moments.mu, _GRAFT_B1)
    return numerator / (jnp.sqrt(corrected(moments.nu, settings.beta2)) + _GRAFT_EPSILON)


def _decayed(decay: float, old: jax.Array, new: jax.Array) -> jax.Array:
    return decay * old + ((1 - decay) if decay < 1 else 1.0) * new


def _outer(x_KMN: jax.Array, side: str) -> jax.Array:
    """G Gᵀ, or Gᵀ G."""
    return (
        _matmul(x_KMN, x_KMN.swapaxes(1, 2))
        if side == "L"
        else _matmul(x_KMN.swapaxes(1, 2), x_KMN)
    )


def _matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _all_finite(tree: Any) -> jax.Array:
    """Whether all numbers of a block are finite [K]."""
    flags = [jnp.all(jnp.isfinite(x), axis=tuple(range(1, x.ndim))) for x in jax.tree.leaves(tree)]
    return functools.reduce(jnp.logical_and, flags)


def _wide(x_K: jax.Array) -> jax.Array:
    return x_K[:, None, None]


def _positive(x: jax.Array) -> jax.Array:
    """Keeps a divisor from 0."""
    return jnp.maximum(x, 1e-37)


def _norm(x_KMN: jax.Array) -> jax.Array:
    """Frobenius norms [K], of any scale that float32 has."""
    largest_K = jnp.max(jnp.abs(x_KMN), axis=(1, 2))
    return largest_K * jnp.sqrt(jnp.sum((x_KMN / _wide(_positive(largest_K))) ** 2, axis=(1, 2)))
