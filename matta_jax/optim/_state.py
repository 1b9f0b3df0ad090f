"""The state of Shampoo. Checkpoints hold it: its fields, their order and its keys are a format."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from matta_jax.config import ShampooConfig
from matta_jax.nesting import path_name
from matta_jax.optim._blocks import Blocking, Bucket


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


def state_without_params() -> ShampooState:
    """Returns a state whose buckets and moments stand for those of any weights: none of them is a
    tree like the weights, which `optax.tree.map_params` looks for.
    """
    zero = jnp.zeros((), jnp.int32)
    return ShampooState(count=zero, buckets=zero, rest=zero, failures=zero)  # type: ignore[arg-type]


def initial_state(settings: ShampooConfig, blocking: Blocking, params: Any) -> ShampooState:
    """Returns the state before the first step."""
    # By path and not as a tree: weights with blocks would leave holes in it.
    zeros = {}
    for path, index in unblocked_leaves(blocking, params).items():
        zeros[path] = jnp.zeros(blocking.shapes[index])

    buckets = {}
    for name, bucket in blocking.buckets.items():
        buckets[name] = _initial_blocks(settings, bucket)

    return ShampooState(
        count=jnp.zeros((), jnp.int32),
        buckets=buckets,
        rest=_initial_moments(settings, zeros),
        failures=jnp.zeros((), jnp.int32),
    )


def unblocked_leaves(blocking: Blocking, tree: Any) -> dict[str, int]:
    """The path of each leaf without blocks, and its index."""
    indices = {}
    for index, (path, view) in enumerate(zip(tree_paths(tree), blocking.views, strict=True)):
        if view is None:
            indices[path] = index
    return indices


def tree_paths(tree: Any) -> list[str]:
    """The path of each leaf, such as `blocks/0/mlp/w_in`."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [path_name(key_path) for key_path, _ in leaves]


def find_shampoo(opt_state: Any) -> ShampooState | None:
    """Returns the `ShampooState` in the state of a chain, or None."""
    for node in jax.tree.leaves(opt_state, is_leaf=_is_shampoo):
        if _is_shampoo(node):
            return node
    return None


def _is_shampoo(node: Any) -> bool:
    return isinstance(node, ShampooState)


def _initial_blocks(settings: ShampooConfig, bucket: Bucket) -> BlockState:
    m, n = bucket.shape
    K = bucket.size

    # The identity: a block whose roots have never been accepted is not preconditioned.
    statistics, roots = {}, {}
    for side in bucket.sides:
        size = {"L": m, "R": n}[side]
        statistics[side] = jnp.zeros((K, size, size))
        identity = jnp.eye(size, dtype=settings.root_dtype)
        roots[side] = jnp.broadcast_to(identity, (K, size, size))

    return BlockState(
        statistics=statistics,
        roots=roots,
        moments=_initial_moments(settings, jnp.zeros((K, m, n))),
        # Never.
        age=jnp.full((K,), -1, jnp.int32),
        failures=jnp.zeros((K,), jnp.int32),
        residual=jnp.zeros((K,)),
    )


def _initial_moments(settings: ShampooConfig, zeros: Any) -> Moments:
    # None is an empty tree: a moment that the rule lacks takes no memory.
    mu, nu = None, None
    if settings.grafting == "adam":
        # Arrays of its own, not those of `nu`: a step that donates its state gives each away once.
        mu = jax.tree.map(jnp.zeros_like, zeros)
    if settings.grafting != "sgd":
        nu = zeros
    return Moments(mu, nu)
