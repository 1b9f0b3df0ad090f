import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from matta_jax import models, nesting, optim
from matta_jax.config import ModelConfig, OptimizerConfig

NEST = nesting.expand(num_layers=2, d_model=16, num_heads=2, d_ff=16, ta_d_ff=32)
ARCHITECTURE = models.architecture_of(ModelConfig(vocab_size=9, max_len=4), NEST, NEST.ta)
AXES = models.logical_axes(ARCHITECTURE)
PARAMS = jax.jit(lambda: models.init_params(ARCHITECTURE, jax.random.key(0), NEST))()


def test_schedule_warms_up_and_decays():
    schedule = optim.make_schedule(
        OptimizerConfig(learning_rate=1.0, warmup_steps=10, final_fraction=0.2), 110
    )
    assert [float(schedule(step)) for step in (0, 5, 10)] == pytest.approx([0.0, 0.5, 1.0])
    assert float(schedule(60)) == pytest.approx(0.6, abs=1e-6) and float(
        schedule(110)
    ) == pytest.approx(0.2)
    constant = optim.make_schedule(
        OptimizerConfig(learning_rate=0.3, warmup_steps=0, schedule="constant"), 10
    )
    assert float(constant(0)) == float(constant(9)) == pytest.approx(0.3)
    stable = optim.make_schedule(
        OptimizerConfig(
            learning_rate=1.0,
            warmup_steps=10,
            schedule="wsd",
            decay_fraction=0.2,
            final_fraction=0.5,
        ),
        100,
    )
    rates = [float(stable(step)) for step in (5, 10, 80, 90, 100)]
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.5])


@pytest.mark.few(2)
@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "muon", "shampoo"])
def test_each_rule_lowers_a_quadratic(name):
    config = OptimizerConfig(name=name, learning_rate=0.02, warmup_steps=0, weight_decay=0.0)
    optimizer = optim.make_optimizer(config, num_steps=300, axes=AXES)
    params, state = PARAMS, optimizer.init(PARAMS)
    target = jax.tree.map(lambda leaf: leaf + 0.1, PARAMS)
    loss = lambda p: sum(
        jnp.sum((a - b) ** 2)
        for a, b in zip(jax.tree.leaves(p), jax.tree.leaves(target), strict=True)
    )

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    first = float(loss(params))
    for _ in range(150):
        params, state = step(params, state)
    assert float(loss(params)) < 0.5 * first


@pytest.mark.parametrize("name", ["adamw", "adafactor", "lion", "muon", "shampoo"])
@pytest.mark.few(2)
def test_norms_and_biases_do_not_decay(name):
    config = OptimizerConfig(name=name, learning_rate=0.1, warmup_steps=0, weight_decay=0.5)
    optimizer = optim.make_optimizer(config, num_steps=10, axes=AXES)
    params = jax.tree.map(lambda leaf: leaf + 1.0, PARAMS)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates = jax.jit(lambda p: optimizer.update(zero, optimizer.init(p), p)[0])(params)
    names = nesting.flatten(AXES)
    for path, update in nesting.flatten(updates).items():
        decays = nesting.is_decayed(names[path]) and not (
            name == "muon" and path.startswith("embed")
        )
        assert bool(jnp.any(update != 0)) == decays, path


@pytest.mark.slow
def test_the_clip_bounds_the_global_norm():
    config = OptimizerConfig(
        name="adamw", clip_norm=1.0, learning_rate=1.0, warmup_steps=0, eps=1.0, weight_decay=0.0
    )
    gradient = jax.tree.map(lambda leaf: 100 * jnp.ones_like(leaf), PARAMS)

    def moment(clip_norm):
        optimizer = optim.make_optimizer(
            OptimizerConfig(**{**config.__dict__, "clip_norm": clip_norm}), num_steps=10, axes=AXES
        )
        return optax.tree.norm(optimizer.update(gradient, optimizer.init(PARAMS), PARAMS)[1][1].mu)

    assert float(moment(1.0)) == pytest.approx(0.1, rel=1e-4)
    assert float(moment(None)) > 100


def test_map_state_finds_the_weight_of_each_moment():
    for name, moments in {"adamw": 2, "lion": 1, "muon": None, "adafactor": None}.items():
        optimizer = optim.make_optimizer(OptimizerConfig(name=name), num_steps=1000, axes=AXES)
        state = optimizer.init(PARAMS)
        found = []
        optim.map_state(lambda leaf, path, found=found: found.append((path, leaf)), state, PARAMS)
        flat = nesting.flatten(PARAMS)
        for path, leaf in found:
            assert path is None or leaf.shape == flat[path].shape
        if moments is not None:
            for path in flat:
                assert sum(other == path for other, _ in found) == moments
            assert all(np.ndim(leaf) == 0 for path, leaf in found if path is None)
