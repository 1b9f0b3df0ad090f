"""What the server does: it draws clients, and takes the mean of what they send."""

from collections.abc import Sequence

import jax
import numpy as np

from matta_jax.federated._networks import Weights

# What keys of the draw begin with, after the run's seed.
_DRAW = 3


def sample_clients(count: int, drawn: int, round_number: int, seed: int) -> list[int]:
    """Draws the clients of a round, without one twice.

    Args:
      count: of all clients.
      drawn: how many take part.
      round_number: from 1.
      seed: of the run.

    Returns:
      Their numbers, in rising order.
    """
    rng = np.random.default_rng([seed, _DRAW, round_number])
    return sorted(rng.choice(count, drawn, replace=False).tolist())


def aggregate(updates: Sequence[tuple[Weights, int]]) -> Weights:
    """The mean of the clients' shared models, weighted by their images: sum of (n_k / n) theta_k.

    Each product is exact in float64, the sum and the quotient are rounded there, and the result is
    rounded to float32: of one client it is that client's, bit for bit.

    Args:
      updates: for each client theta, float32, and the number of its images.

    Returns:
      New arrays, which share no memory with those of any client.

    Raises:
      ValueError: no clients, a client without images, or clients whose theta differ in shape.
    """
    if not updates or any(images < 1 for _, images in updates):
        raise ValueError("a mean is of clients that have images")
    thetas = [theta for theta, _ in updates]
    counts = np.array([images for _, images in updates], np.float64)

    def mean(*arrays: np.ndarray) -> np.ndarray:
        # Of arrays that differ in shape this raises, where a sum might stretch them.
        stacked = np.stack([np.asarray(array, np.float64) for array in arrays])
        scaled = stacked * counts.reshape(-1, *[1] * (stacked.ndim - 1))
        return np.asarray(scaled.sum(axis=0) / counts.sum(), np.float32)

    return jax.tree.map(mean, *thetas)


def count_bytes(theta: Weights) -> int:
    """The bytes of all arrays of a shared model."""
    return sum(array.nbytes for array in jax.tree.leaves(theta))
