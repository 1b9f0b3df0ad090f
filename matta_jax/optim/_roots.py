"""Inverse p-th roots of batches of symmetric positive semi-definite matrices."""

import jax
import jax.numpy as jnp
import numpy as np

_TINY = 1e-30  # Below this a matrix counts as zero.
_MAX_ITERATIONS = 40
_TOLERANCE = 1e-6


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
    safe_K = jnp.where(is_zero_K, 1.0, scale_K)
    eye_NN = jnp.eye(matrices_KNN.shape[-1], dtype=matrices_KNN.dtype)
    scaled_KNN = jnp.where(is_zero_K[:, None, None], eye_NN, matrices_KNN / safe_K[:, None, None])
    scaled_KNN = (scaled_KNN + scaled_KNN.swapaxes(1, 2)) / 2
    roots = _newton if method == "newton" else _eigh
    root_KNN, residual_K = roots(scaled_KNN, p, epsilon)
    return root_KNN * (safe_K ** (-1.0 / p))[:, None, None], residual_K, is_zero_K


def _matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _power(a_KNN: jax.Array, p: int) -> jax.Array:
    for _ in range({2: 1, 4: 2}[p]):
        a_KNN = _matmul(a_KNN, a_KNN)
    return a_KNN


def _error(a_KNN: jax.Array) -> jax.Array:
    return jnp.max(jnp.abs(a_KNN - jnp.eye(a_KNN.shape[-1], dtype=a_KNN.dtype)), axis=(1, 2))


def largest_eigenvalue(matrices_KNN: jax.Array, *, iterations: int = 100) -> jax.Array:
    """Returns the largest eigenvalues [K] by power iteration, from below."""
    start_N = jnp.asarray(
        np.random.default_rng(0).normal(size=matrices_KNN.shape[-1]), matrices_KNN.dtype
    )

    def step(_: int, v_KN: jax.Array) -> jax.Array:
        w_KN = _matmul(matrices_KNN, v_KN[..., None])[..., 0]
        return w_KN / jnp.maximum(jnp.linalg.norm(w_KN, axis=-1, keepdims=True), _TINY)

    v_KN = jax.lax.fori_loop(0, iterations, step, jnp.broadcast_to(start_N, matrices_KNN.shape[:2]))
    return jnp.sum(v_KN * _matmul(matrices_KNN, v_KN[..., None])[..., 0], axis=-1)


def _newton(a_KNN: jax.Array, p: int, epsilon: float) -> tuple[jax.Array, jax.Array]:
    """The coupled Newton iteration (Guo & Higham 2006; Anil et al. 2020, algorithm 4).

    H_{i+1} = H_i W, M_{i+1} = W^p M_i, W = ((p + 1) I - M_i) / p, from M_0 = z A, H_0 = z^(1/p) I:
    M goes to I and H to the root. Each matrix stops by itself. A growing error stops it only when
    it is small already: matrices of low rank begin with errors that grow.
    """
    eye_NN = jnp.eye(a_KNN.shape[-1], dtype=a_KNN.dtype)
    largest_K = largest_eigenvalue(a_KNN)
    a_KNN = a_KNN + epsilon * largest_K[:, None, None] * eye_NN
    frobenius_K = jnp.sqrt(jnp.sum(a_KNN**2, axis=(1, 2)))
    row_sum_K = jnp.max(jnp.sum(jnp.abs(a_KNN), axis=-1), axis=-1)
    bound_K = jnp.minimum(jnp.minimum(frobenius_K, row_sum_K), 1.5 * (1 + epsilon) * largest_K)
    z_K = ((1 + p) / 2 / bound_K)[:, None, None]
    m_KNN = a_KNN * z_K
    h_KNN = eye_NN * z_K ** (1.0 / p)
    error_K = _error(m_KNN)

    def unfinished(carry):
        return (carry[0] < _MAX_ITERATIONS) & jnp.any(carry[4])

    def step(carry):
        i, m_KNN, h_KNN, error_K, active_K = carry
        w_KNN = ((p + 1) * eye_NN - m_KNN) / p
        next_m_KNN, next_h_KNN = _matmul(_power(w_KNN, p), m_KNN), _matmul(h_KNN, w_KNN)
        next_error_K = _error(next_m_KNN)
        better_K = active_K & ((next_error_K < error_K) | (error_K >= 0.05))
        keep = lambda new, old: jnp.where(better_K.reshape(-1, *[1] * (new.ndim - 1)), new, old)
        m_KNN, h_KNN = keep(next_m_KNN, m_KNN), keep(next_h_KNN, h_KNN)
        error_K = keep(next_error_K, error_K)
        return i + 1, m_KNN, h_KNN, error_K, better_K & (error_K > _TOLERANCE)

    start = (jnp.zeros((), jnp.int32), m_KNN, h_KNN, error_K, error_K > _TOLERANCE)
    _, _, h_KNN, error_K, _ = jax.lax.while_loop(unfinished, step, start)
    return h_KNN, error_K


def _eigh(a_KNN: jax.Array, p: int, epsilon: float) -> tuple[jax.Array, jax.Array]:
    values_KN, vectors_KNN = jnp.linalg.eigh(a_KNN)
    powers_KN = (jnp.maximum(values_KN, 0.0) + epsilon * values_KN[:, -1:]) ** (-1.0 / p)
    of = lambda spectrum_KN: _matmul(
        vectors_KNN * spectrum_KN[:, None, :], vectors_KNN.swapaxes(1, 2)
    )
    return of(powers_KN), jnp.max(jnp.abs(of(values_KN) - a_KNN), axis=(1, 2))
