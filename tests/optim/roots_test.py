import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from matta_jax import optim


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("rank", [1, 3, 12])
@pytest.mark.parametrize("method", ["newton", "eigh"])
def test_roots_of_any_rank_and_scale_converge(method, rank, scale, assert_close):
    """Newton's error first grows where the rank is low: to stop there would leave the root 96 %
    off.
    """
    x = np.random.default_rng(rank).normal(size=(3, 12, rank))
    matrices = jnp.asarray(x @ x.swapaxes(1, 2) * scale, jnp.float32)
    compute = functools.partial(optim.inverse_pth_root, p=4, epsilon=1e-4, method=method)
    root, residual, is_zero = jax.jit(compute)(matrices)

    values, vectors = np.linalg.eigh(np.float64(matrices))
    powers = (np.maximum(values, 0) + 1e-4 * values[:, -1:]) ** -0.25
    expected = vectors * powers[:, None, :] @ vectors.swapaxes(1, 2)
    assert not bool(is_zero.any()) and float(residual.max()) < 1e-3
    assert_close(root, expected, rtol=1e-3)


@pytest.mark.parametrize("num_matrices", [1, 3, 8])
def test_eigh_calls_lapack_for_one_matrix_at_a_time(num_matrices):
    """A batched call waits on one thread of the pool for others, and some at once for ever."""
    compute = functools.partial(optim.inverse_pth_root, p=4, epsilon=1e-4, method="eigh")
    program = jax.jit(compute).lower(jnp.zeros((num_matrices, 6, 6))).compile().as_text()
    calls = re.findall(r"= \((\S+), .*custom-call.*lapack_ssyevd", program)
    assert len(calls) == 1 and re.match(r"f32\[(1,)?6,6\]", calls[0])
