import dataclasses

import jax.numpy as jnp

from matta_jax.config import ShampooConfig

SMALL = ShampooConfig(block_size=8, precondition_every=1, start_step=0, beta2=0.9)


def test_staggered_blocks_take_turns_and_equal_every_k_for_k_of_one(
    apply_shampoo, random_gradients, assert_close
):
    gradients = random_gradients((8, 40), 7)
    every = dataclasses.replace(SMALL, precondition_every=3, start_step=3)
    staggered = dataclasses.replace(every, staggered=True)
    staggered_updates, state = apply_shampoo(staggered, gradients)
    # Block i was last refreshed in the last step t <= 6 with t = i (mod 3).
    assert state.buckets["8x8"].age[:5].tolist() == [(6 - i) % 3 for i in range(5)]

    every_step = dataclasses.replace(SMALL, precondition_every=1)
    assert_close(
        apply_shampoo(dataclasses.replace(every_step, staggered=True), gradients)[0],
        apply_shampoo(every_step, gradients)[0],
        rtol=1e-6,
    )
    # A block that every-k and staggered refresh in the same steps has the same updates.
    updates, _ = apply_shampoo(every, gradients)
    assert_close([u[:, :8] for u in staggered_updates], [u[:, :8] for u in updates], rtol=1e-6)


def test_a_root_that_is_no_good_leaves_the_old_one(apply_shampoo, random_gradients):
    gradients = random_gradients((8, 8), 2)
    settings = dataclasses.replace(SMALL, epsilon=1e-4)
    _, state = apply_shampoo(settings, gradients)

    blocks = state.buckets["8x8"]
    indefinite = jnp.diag(jnp.array([1.0, -1.0] * 4)) * 1e6
    statistics = {"L": blocks.statistics["L"].at[0].set(indefinite), "R": blocks.statistics["R"]}
    state = state._replace(buckets={"8x8": blocks._replace(statistics=statistics)})

    updates, state = apply_shampoo(settings, gradients[:1], state=state)
    refreshed = state.buckets["8x8"]
    assert int(refreshed.failures[0]) == 1 and int(refreshed.age[0]) == 1
    assert bool(jnp.all(refreshed.roots["L"] == blocks.roots["L"]))
    assert bool(jnp.all(jnp.isfinite(updates[0])))
