import jax.numpy as jnp
import optax

from matta_jax import optim


def test_failures_are_summed_and_the_largest_residual_is_told():
    params = {"a": jnp.zeros((8, 8)), "b": jnp.zeros((4, 4)), "c": jnp.zeros(3)}
    state = optim.scale_by_shampoo().init(params)
    buckets = dict(state.buckets)
    for name, residual in (("8x8", 0.25), ("4x4", 0.5)):
        blocks = buckets[name]
        buckets[name] = blocks._replace(
            failures=blocks.failures.at[0].set(2), residual=blocks.residual.at[0].set(residual)
        )
    state = state._replace(buckets=buckets, failures=jnp.int32(3))

    report = optim.diagnostics((optax.EmptyState(), state))
    assert float(report["shampoo_failures"]) == 2 + 2 + 3
    assert float(report["shampoo_residual"]) == 0.5


def test_a_chain_without_shampoo_has_nothing_to_say():
    state = optax.adam(1e-3).init(jnp.zeros(3))
    assert optim.diagnostics(state) == {} and optim.find_shampoo(state) is None
