"""Sub-models cut from one copy of the weights, and their parts of one pool of caches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from matta_jax import models
from matta_jax.config import Config, DataConfig, LlamaConfig, ModelConfig, NestConfig
from matta_jax.nesting import parse_spec

GPT = Config(
    model=ModelConfig(
        num_layers=2, d_model=16, num_heads=2, d_ff=16, max_len=16, vocab_size=32, head_dim=8
    ),
    data=DataConfig(seq_len=16),
    nest=NestConfig(num_layers=3, d_model=32, num_heads=4, d_ff=32, widths=(16, 32)),
)
LLAMA = Config(
    model=LlamaConfig(
        num_layers=3, d_model=16, num_heads=4, num_kv_heads=2, head_dim=8, d_ff=16,
        max_len=16, vocab_size=32,
    ),
    data=DataConfig(seq_len=16),
    nest=NestConfig(d_ff=32, widths=(16, 32)),
)  # fmt: skip
CASES = {
    "gpt, the Student's layers, heads and d_model": (GPT, "student"),
    "gpt, all": (GPT, "ta"),
    "gpt, a mix": (GPT, "d_ff=16,32,16;layers=3;d_model=32;num_heads=4"),
    "gpt, all without a layer": (GPT, "ta"),
    "llama, a mix": (LLAMA, "d_ff=16,32,16"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_sub_model_of_the_pool_runs_as_its_slice_and_touches_nothing_else(case):
    config, spec = CASES[case]
    plan = models.plan_of(config)
    sub_model = parse_spec(spec, plan.nest)
    if case.endswith("without a layer"):
        sub_model = sub_model.part((0, 2))
    plain = plan.architecture_of(sub_model)
    params = jax.jit(lambda: models.init_params(plan.architecture, jax.random.key(0), plan.nest))()
    expected = models.decoder_weights(plain, plan.slice(params, sub_model))
    resident = models.resident_weights(plan.architecture, params)
    weights = models.sub_model_weights(plan.architecture, resident, sub_model)
    jax.tree.map(np.testing.assert_array_equal, weights, expected)

    pool = models.init_pool(plan.architecture, slots=2, length=8)
    marked = jax.tree.map(lambda leaf: jnp.full_like(leaf, 7.0), pool)
    cache = models.cache_in(marked, plain, sub_model, 6)
    tokens = jnp.array([[3, 1, 4], [1, 5, 9]])
    extend = jax.jit(functools.partial(models.extend, plain))
    hidden, cache = extend(weights, tokens, cache, jnp.array([0, 2]))
    alone = models.init_cache(plain, batch_size=2, length=6)
    alone = jax.tree.map(lambda leaf: jnp.full_like(leaf, 7.0), alone)
    expected_hidden, alone = extend(weights, tokens, alone, jnp.array([0, 2]))
    np.testing.assert_array_equal(hidden, expected_hidden)

    changed = models.put_cache(marked, cache, sub_model)
    jax.tree.map(
        np.testing.assert_array_equal, models.cache_in(changed, plain, sub_model, 6), alone
    )
    heads = jax.tree.leaves(alone[0])[0].shape[0] // 2
    for layer, leaves in enumerate(changed):
        for leaf in jax.tree.leaves(leaves):
            assert leaf.shape == jax.tree.leaves(pool[layer])[0].shape
            if layer not in sub_model.layers:
                assert (leaf == 7).all()
                continue
            assert (leaf[:, heads:] == 7).all() and (leaf[:, :, 6:] == 7).all()
            assert (leaf[0, :heads, :3] != 7).all() and (leaf[0, :heads, 3:] == 7).all()
            assert (leaf[1, :heads, 2:5] != 7).all() and (leaf[1, :heads, :2] == 7).all()
