"""Products of activations and weights, and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from matta_jax.models.layers import project

SUBSCRIPTS = {
    "nd,gdf->ngf": ((5, 3), (2, 3, 4)),
    "ngf,gfd->nd": ((5, 2, 4), (2, 4, 3)),
    "nd,kdche->nkche": ((5, 3), (2, 3, 3, 2, 2)),
    "nd,df->nf": ((5, 3), (3, 4)),
}
ONES = {
    "nd,gdf->ngf": ((5, 3), (1, 3, 4)),
    "ngf,gfd->nd": ((1, 1, 4), (1, 4, 3)),
    "nd,kdche->nkche": ((5, 1), (1, 1, 3, 1, 2)),
    "nd,df->nf": ((5, 1), (1, 1)),
}


@pytest.mark.parametrize("subscripts", SUBSCRIPTS)
@pytest.mark.parametrize("shapes", [SUBSCRIPTS, ONES], ids=["full", "ones"])
def test_is_the_einsum_with_its_gradients(subscripts, shapes):
    rng = np.random.default_rng(0)
    x, weight = (jnp.float32(rng.normal(size=shape)) for shape in shapes[subscripts])

    def value_and_gradients(product):
        loss = lambda x, weight: jnp.sum(product(subscripts, x, weight) ** 3)
        return jax.jit(jax.value_and_grad(loss, (0, 1)))(x, weight)

    value, gradients = value_and_gradients(project)
    expected, expected_gradients = value_and_gradients(jnp.einsum)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert gradient.shape == expected_gradient.shape
        np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-4)


def test_a_wider_weight_has_its_gradient_summed_in_its_own_type():
    """4096 tokens of 1 add up to 4096 in float32; in bfloat16, one by one, they would not."""
    x_ND = jnp.ones((4096, 2), jnp.bfloat16).at[0].set(1 / 128)
    weight_DF = jnp.ones((2, 3))
    out_NF, pullback = jax.vjp(lambda x, w: project("nd,df->nf", x, w), x_ND, weight_DF)
    assert out_NF.dtype == jnp.bfloat16
    d_x, d_weight = pullback(jnp.ones_like(out_NF))
    assert (d_x.dtype, d_weight.dtype) == (jnp.bfloat16, jnp.float32)
    np.testing.assert_array_equal(d_weight, np.full((2, 3), 4095 + 1 / 128, np.float32))
