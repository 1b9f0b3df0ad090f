import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from matta_jax import optim
from matta_jax.config import ShampooConfig
from matta_jax.optim import scale_by_shampoo
from matta_jax.sharding import collectives, make_mesh

SMALL = ShampooConfig(block_size=8, precondition_every=1, start_step=0, beta2=0.9)
SHAPES = {"a": (24, 40), "b": (3, 16, 16), "c": (5,), "d": (50, 8)}


@pytest.mark.few(2)
@pytest.mark.parametrize("fields", [{}, {"staggered": True}, {"graft_scope": "parameter"}], ids=str)
@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2)], ids=str)
def test_eight_devices_give_the_updates_of_one(
    sizes, fields, apply_shampoo, random_gradients, assert_close
):
    def tree_of(seed):
        tree = {}
        for i, (name, shape) in enumerate(SHAPES.items()):
            tree[name] = random_gradients(shape, 1, seed=seed + i)[0]
        return tree

    settings = dataclasses.replace(SMALL, precondition_every=3, **fields)
    gradients = [tree_of(seed) for seed in range(6)]
    expected, _ = apply_shampoo(settings, gradients)

    mesh = make_mesh(sizes)
    state = scale_by_shampoo(settings).init(gradients[0])
    replicated = {name: NamedSharding(mesh, P()) for name in SHAPES}
    shardings = optim.state_shardings(state, gradients[0], replicated, mesh)
    placed = jax.device_put(state, shardings)
    updates, state = apply_shampoo(settings, gradients, mesh=mesh, state=placed)
    assert_close(updates, expected, rtol=1e-5)

    statistics = state.buckets["8x8"].statistics["L"]
    assert statistics.sharding.shard_shape(statistics.shape)[0] == statistics.shape[0] // 8


def compile_update(mesh):
    """Two weights of 16 blocks, split over fsdp as training has them."""
    transform = scale_by_shampoo(ShampooConfig(block_size=32, root="newton"), mesh=mesh)

    def place(spec, shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))

    gradients = {"a": place(P("fsdp"), (128, 128)), "b": place(P(None, "fsdp"), (4, 64, 64))}
    state = jax.eval_shape(transform.init, gradients)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, gradients)
    state_shardings = optim.state_shardings(state, gradients, shardings, mesh)
    state = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        state,
        state_shardings,
    )
    update = jax.jit(transform.update, out_shardings=(shardings, state_shardings))
    return update.lower(gradients, state).compile()


def check_distribution(eight, one):
    """Each device does its share, and what crosses is whole gradients in and whole updates out."""
    # XLA counts the body of a loop once, for one device and for eight.
    assert eight.cost_analysis()["flops"] <= one.cost_analysis()["flops"] / 6
    eight_bytes = eight.memory_analysis().argument_size_in_bytes
    assert eight_bytes <= one.memory_analysis().argument_size_in_bytes / 6

    transfers = collectives(eight.as_text())
    assert {transfer.kind for transfer in transfers} == {"all-gather"}
    assert not any(transfer.in_loop for transfer in transfers)
    # Two gradients and one bucket's updates; XLA may join the first two.
    assert len(transfers) <= 3


def test_the_work_is_shared_and_only_gradients_and_updates_are_gathered():
    check_distribution(compile_update(make_mesh((1, 8, 1))), compile_update(make_mesh((1, 1, 1))))


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (extra: tpu)"
)
@pytest.mark.parametrize("sizes", [(1, 8, 1), (2, 2, 2)], ids=str)
def test_the_work_is_shared_on_a_tpu(sizes, tpu_mesh):
    check_distribution(compile_update(tpu_mesh(sizes)), compile_update(tpu_mesh((1, 1, 1))))
