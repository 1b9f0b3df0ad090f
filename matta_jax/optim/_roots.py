"""Inverse p-th roots of batches of symmetric positive semi-definite matrices.

Shape letters: K matrices, N their rows and columns.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from matta_jax.optim._batches import expand, matmul

# Below this a matrix counts as zero.
_TINY = 1e-30
_MAX_ITERATIONS = 40
_TOLERANCE = 1e-6
# An error from here on may grow: matrices of low rank begin so.
_SMALL_ERROR = 0.05


def inverse_pth_root(
    matrices_KNN: jax.Array, p: int, *, epsilon: float, method: str
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes (A + ε λ_max I)^(-1/p) of each matrix.

    Args:
      matrices_KNN: symmetric positive semi-definite, float32 or float64, of any scale.
      p: 2 or 4.
      epsilon: ε, relative to the largest eigenvalue.
      method: `newton`, matmuls only; or `eigh`.

    Returns:
      Roots [K, N, N], finite for matrices that are; residuals [K]: the largest entry of
      |root^p (A + ε λ_max I) - I| for newton, and for eigh that of |V Λ Vᵀ - A| with A scaled to a
      largest entry of 1
      (at ε = 1e-6 float32 itself makes the former 0.1 for matrices of low rank); and which matrices
      are zero, whose root is meaningless.
    """
    scale_K = jnp.max(jnp.abs(matrices_KNN), axis=(1, 2))
    is_zero_K = scale_K < _TINY
    safe_scale_K = jnp.where(is_zero_K, 1.0, scale_K)

    # The identity in place of a zero matrix keeps what follows finite.
    eye_NN = jnp.eye(matrices_KNN.shape[-1], dtype=matrices_KNN.dtype)
    scaled_KNN = jnp.where(expand(is_zero_K), eye_NN, matrices_KNN / expand(safe_scale_K))
    symmetric_KNN = (scaled_KNN + scaled_KNN.swapaxes(1, 2)) / 2

    if method == "newton":
        root_KNN, residual_K = _newton_root(symmetric_KNN, p, epsilon)
    else:
        root_KNN, residual_K = _eigh_root(symmetric_KNN, p, epsilon)
    return root_KNN * expand(safe_scale_K ** (-1.0 / p)), residual_K, is_zero_K


def largest_eigenvalue(matrices_KNN: jax.Array, *, iterations: int = 100) -> jax.Array:
    """Returns the largest eigenvalues [K] by power iteration, from below."""
    generator = np.random.default_rng(0)
    start_N = jnp.asarray(generator.normal(size=matrices_KNN.shape[-1]), matrices_KNN.dtype)

    def product(v_KN: jax.Array) -> jax.Array:
        return matmul(matrices_KNN, v_KN[..., None])[..., 0]

    def step(_: int, v_KN: jax.Array) -> jax.Array:
        w_KN = product(v_KN)
        norm_K1 = jnp.linalg.norm(w_KN, axis=-1, keepdims=True)
        return w_KN / jnp.maximum(norm_K1, _TINY)

    start_KN = jnp.broadcast_to(start_N, matrices_KNN.shape[:2])
    v_KN = jax.lax.fori_loop(0, iterations, step, start_KN)
    return jnp.sum(v_KN * product(v_KN), axis=-1)


class _Newton(NamedTuple):
    """The state of the iteration: its step, M, H, the largest entry of |M - I| [K], and which
    matrices still move [K].
    """

    iteration: jax.Array
    m_KNN: jax.Array
    h_KNN: jax.Array
    error_K: jax.Array
    active_K: jax.Array


def _newton_root(a_KNN: jax.Array, p: int, epsilon: float) -> tuple[jax.Array, jax.Array]:
    """The coupled Newton iteration (Guo & Higham 2006; Anil et al. 2020, algorithm 4).

    H_{i+1} = H_i W, M_{i+1} = W^p M_i, W = ((p + 1) I - M_i) / p, from M_0 = z A, H_0 = z^(1/p) I:
    M goes to I and H to the root. Each matrix stops by itself. A growing error stops it only when
    it is small already: matrices of low rank begin with errors that grow.
    """
    eye_NN = jnp.eye(a_KNN.shape[-1], dtype=a_KNN.dtype)

    def unfinished(state: _Newton) -> jax.Array:
        return (state.iteration < _MAX_ITERATIONS) & jnp.any(state.active_K)

    def step(state: _Newton) -> _Newton:
        w_KNN = ((p + 1) * eye_NN - state.m_KNN) / p
        m_KNN = matmul(_power(w_KNN, p), state.m_KNN)
        h_KNN = matmul(state.h_KNN, w_KNN)
        error_K = _distance_from_identity(m_KNN)

        better_K = state.active_K & ((error_K < state.error_K) | (state.error_K >= _SMALL_ERROR))
        better_K11 = expand(better_K)
        m_KNN = jnp.where(better_K11, m_KNN, state.m_KNN)
        h_KNN = jnp.where(better_K11, h_KNN, state.h_KNN)
        error_K = jnp.where(better_K, error_K, state.error_K)
        active_K = better_K & (error_K > _TOLERANCE)
        return _Newton(state.iteration + 1, m_KNN, h_KNN, error_K, active_K)

    final = jax.lax.while_loop(unfinished, step, _newton_start(a_KNN, eye_NN, p, epsilon))
    return final.h_KNN, final.error_K


def _newton_start(a_KNN: jax.Array, eye_NN: jax.Array, p: int, epsilon: float) -> _Newton:
    largest_K = largest_eigenvalue(a_KNN)
    a_KNN = a_KNN + epsilon * expand(largest_K) * eye_NN

    # The iteration converges from z λ_max < p + 1. Power iteration is from below, hence its 1.5;
    # the other two norms are true bounds.
    frobenius_K = jnp.sqrt(jnp.sum(a_KNN**2, axis=(1, 2)))
    row_sum_K = jnp.max(jnp.sum(jnp.abs(a_KNN), axis=-1), axis=-1)
    norm_bound_K = jnp.minimum(frobenius_K, row_sum_K)
    bound_K = jnp.minimum(norm_bound_K, 1.5 * (1 + epsilon) * largest_K)

    z_K11 = expand((1 + p) / 2 / bound_K)
    m_KNN = a_KNN * z_K11
    h_KNN = eye_NN * z_K11 ** (1.0 / p)
    error_K = _distance_from_identity(m_KNN)
    iteration = jnp.zeros((), jnp.int32)
    return _Newton(iteration, m_KNN, h_KNN, error_K, error_K > _TOLERANCE)


def _power(a_KNN: jax.Array, p: int) -> jax.Array:
    """A^p for p = 2 or 4, by squaring."""
    num_squarings = {2: 1, 4: 2}[p]
    for _ in range(num_squarings):
        a_KNN = matmul(a_KNN, a_KNN)
    return a_KNN


def _distance_from_identity(a_KNN: jax.Array) -> jax.Array:
    """The largest entry of |A - I| [K]."""
    eye_NN = jnp.eye(a_KNN.shape[-1], dtype=a_KNN.dtype)
    return jnp.max(jnp.abs(a_KNN - eye_NN), axis=(1, 2))


def _eigh_root(a_KNN: jax.Array, p: int, epsilon: float) -> tuple[jax.Array, jax.Array]:
    values_KN, vectors_KNN = _eigh(a_KNN)

    def with_spectrum(spectrum_KN: jax.Array) -> jax.Array:
        scaled_KNN = vectors_KNN * spectrum_KN[:, None, :]
        return matmul(scaled_KNN, vectors_KNN.swapaxes(1, 2))

    # Rounding makes the smallest eigenvalues negative; the last is the largest.
    ridge_K1 = epsilon * values_KN[:, -1:]
    powers_KN = (jnp.maximum(values_KN, 0.0) + ridge_K1) ** (-1.0 / p)
    root_KNN = with_spectrum(powers_KN)

    residual_K = jnp.max(jnp.abs(with_spectrum(values_KN) - a_KNN), axis=(1, 2))
    return root_KNN, residual_K


def _eigh(a_KNN: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns eigenvalues, ascending, and eigenvectors: `jnp.linalg.eigh` that cannot hang on CPU.

    There LAPACK spreads a batch over the threads that run the program, and waits on one of them for
    the rest. As many such calls at once as there are threads wait for ever: two sides of a few
    buckets on two cores do. A call for one matrix spreads nothing, and sixteen of them take no
    longer.
    """
    return jax.lax.platform_dependent(
        a_KNN, cpu=lambda a: jax.lax.map(jnp.linalg.eigh, a), default=jnp.linalg.eigh
    )
