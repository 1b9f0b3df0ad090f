"""Arithmetic on batches of matrices.

Shape letters: K matrices of a batch, M and N their rows and columns.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp


def matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """A product whose factors no accelerator rounds: roots need all of float32."""
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def outer(x_KMN: jax.Array, side: str) -> jax.Array:
    """G Gᵀ of each matrix for side L, Gᵀ G for side R."""
    transposed_KNM = x_KMN.swapaxes(1, 2)
    if side == "L":
        return matmul(x_KMN, transposed_KNM)
    return matmul(transposed_KNM, x_KMN)


def expand(x_K: jax.Array) -> jax.Array:
    """Numbers of matrices as [K, 1, 1], which broadcasts over their entries."""
    return x_K[:, None, None]


def all_finite(tree: Any) -> jax.Array:
    """Whether all numbers of each matrix are finite in all arrays of a tree [K]."""
    # Statistics have other shapes than gradients: each leaf is reduced by itself.
    flags = []
    for leaf in jax.tree.leaves(tree):
        flags.append(jnp.all(jnp.isfinite(leaf), axis=tuple(range(1, leaf.ndim))))
    return functools.reduce(jnp.logical_and, flags)


def positive(x: jax.Array) -> jax.Array:
    """Keeps a divisor from 0."""
    return jnp.maximum(x, 1e-37)


def frobenius_norm(x_KMN: jax.Array) -> jax.Array:
    """Frobenius norms [K], of any scale that float32 has."""
    # The squares of entries above 1e19 overflow, and those below 1e-19 vanish.
    largest_K = jnp.max(jnp.abs(x_KMN), axis=(1, 2))
    scaled_KMN = x_KMN / expand(positive(largest_K))
    return largest_K * jnp.sqrt(jnp.sum(scaled_KMN**2, axis=(1, 2)))
