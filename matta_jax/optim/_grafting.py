"""The grafting update, whose norm a preconditioned update takes; and alone, the rule of weights
without blocks.
"""

from typing import Any

import jax
import jax.numpy as jnp

from matta_jax.config import ShampooConfig
from matta_jax.optim._batches import all_finite
from matta_jax.optim._state import Moments

_EPSILON = 1e-8
_B1 = 0.9


def update_moments(settings: ShampooConfig, gradients: Any, moments: Moments) -> Moments:
    """Returns the moments after the gradients, a tree like each of them."""
    mu, nu = moments
    if mu is not None:
        mu = jax.tree.map(lambda g, m: decayed(_B1, m, g), gradients, mu)
    if nu is not None:
        nu = jax.tree.map(lambda g, v: decayed(settings.beta2, v, g**2), gradients, nu)
    return Moments(mu, nu)


def grafting_update(
    settings: ShampooConfig, gradient: jax.Array, moments: Moments, count: jax.Array
) -> jax.Array:
    """The grafting update; with bias correction, as the moments begin at zero."""
    # Grafting by sgd.
    if moments.nu is None:
        return gradient

    # The numerator of adam is a mean, that of rmsprop the gradient itself.
    direction = gradient
    if moments.mu is not None:
        direction = _bias_corrected(moments.mu, _B1, count)
    second_moment = _bias_corrected(moments.nu, settings.beta2, count)
    return direction / (jnp.sqrt(second_moment) + _EPSILON)


def graft_unblocked(
    settings: ShampooConfig, gradients: dict[str, jax.Array], moments: Moments, count: jax.Array
) -> tuple[dict[str, jax.Array], Moments, jax.Array]:
    """Steps the weights without blocks; a gradient that is not finite changes nothing.

    Args:
      settings: of the transform.
      gradients: float32, by path.
      moments: of dicts like the gradients.
      count: steps done.

    Returns:
      The grafting updates, the moments, and how many gradients were not finite.
    """
    new_moments = update_moments(settings, gradients, moments)
    updates, accepted = {}, {}
    failures = jnp.zeros((), jnp.int32)

    for path, gradient in gradients.items():
        old, new = _moments_at(moments, path), _moments_at(new_moments, path)
        # A scalar has no axis that `all_finite` could keep.
        is_finite = jnp.all(all_finite(jax.tree.map(jnp.atleast_1d, (gradient, new))))
        accepted[path] = _select(is_finite, new, old)

        safe_gradient = jnp.where(is_finite, gradient, 0.0)
        update = grafting_update(settings, safe_gradient, accepted[path], count)
        # Or adam's old mean would still move the weight.
        updates[path] = jnp.where(is_finite, update, 0.0)
        failures = failures + ~is_finite

    # From moments by path to dicts of paths, as the state has them.
    mu, nu = None, None
    if moments.mu is not None:
        mu = {path: moment.mu for path, moment in accepted.items()}
    if moments.nu is not None:
        nu = {path: moment.nu for path, moment in accepted.items()}
    return updates, Moments(mu, nu), failures


def decayed(decay: float, average: jax.Array, value: jax.Array) -> jax.Array:
    """A moving average after one more value; a sum where the decay is 1."""
    weight = 1 - decay if decay < 1 else 1.0
    return decay * average + weight * value


def _bias_corrected(moment: jax.Array, decay: float, count: jax.Array) -> jax.Array:
    # A sum has no bias.
    if decay >= 1:
        return moment
    return moment / (1 - decay ** (count + 1.0))


def _moments_at(moments: Moments, path: str) -> Moments:
    mu = None if moments.mu is None else moments.mu[path]
    nu = None if moments.nu is None else moments.nu[path]
    return Moments(mu, nu)


def _select(condition: jax.Array, new: Moments, old: Moments) -> Moments:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), new, old)
