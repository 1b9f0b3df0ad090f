"""Devices share a model that is not trained, and rows that they read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from matta_jax import sharding
from matta_jax.config import MeshConfig
from matta_jax.errors import UserError
from matta_jax.models import plan_of

EVEN = {"model__num_heads": 4, "nest__num_heads": 8, "nest__d_model": 32}


def test_a_cpu_is_one_device_unless_sizes_are_named():
    assert sharding.local_mesh(None) is None
    assert sharding.local_mesh(MeshConfig(data=1)) is None
    mesh = sharding.local_mesh(MeshConfig(tensor=4))
    assert dict(mesh.shape) == {"data": 2, "fsdp": 1, "tensor": 4, "context": 1}
    assert sharding.row_shards(mesh) == 2 and sharding.row_shards(None) == 1


def test_all_accelerators_split_rows_by_default(monkeypatch):
    class Chip:
        platform = "tpu"

    made = []
    monkeypatch.setattr(jax, "local_devices", lambda: [Chip()] * 6)
    monkeypatch.setattr(sharding._local, "make_mesh", lambda sizes, *_, **__: made.append(sizes))
    sharding.local_mesh(None)
    assert made == [(6, 1, 1, 1)]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (MeshConfig(tensor=16), r"mesh.tensor=16 needs 16 devices.* the 8 .*: mesh.tensor=8"),
        (MeshConfig(data=9), "mesh.data=9 needs 9 devices, but there are 8"),
    ],
)
def test_a_mesh_beyond_the_devices_is_refused(config, words):
    with pytest.raises(UserError, match=words):
        sharding.local_mesh(config)


def test_a_vocabulary_need_not_divide_and_a_size_must(tiny):
    mesh = sharding.local_mesh(MeshConfig(data=1, fsdp=2, tensor=4))
    plan = plan_of(tiny(model__vocab_size=257, **EVEN))
    placed = sharding.weight_shardings(plan.abstract, plan.axes, mesh)
    assert placed["embed"]["tokens"].spec == PartitionSpec(None, "fsdp")
    assert any("tensor" in leaf.spec for leaf in jax.tree.leaves(placed))

    plan = plan_of(tiny(model__d_ff=18, nest__d_ff=36, nest__widths=[], **EVEN))
    with pytest.raises(UserError, match="tensor=4 must divide the common granule of 18 of d_ff"):
        sharding.weight_shardings(plan.abstract, plan.axes, mesh)
    plan = plan_of(tiny())
    with pytest.raises(UserError, match="granule of 1 of heads .*; use mesh.tensor=1"):
        sharding.weight_shardings(plan.abstract, plan.axes, mesh)


@pytest.mark.parametrize("count", [8, 6])
def test_rows_are_split_where_they_divide(count):
    mesh = sharding.local_mesh(MeshConfig(data=2, fsdp=2))
    batch = {"tokens": np.arange(count * 3).reshape(count, 3), "length": np.arange(count)}
    assert sharding.place_rows(batch, None) is batch
    for name, array in sharding.place_rows(batch, mesh).items():
        np.testing.assert_array_equal(array, batch[name])
        rows = {shard.data.shape[0] for shard in array.addressable_shards}
        assert rows == {2 if count == 8 else 6}


@pytest.mark.parametrize("at_once", [1, 2])
def test_devices_map_their_rows_side_by_side(at_once):
    mesh = sharding.local_mesh(MeshConfig(data=2, fsdp=2))
    x = np.random.default_rng(0).normal(size=(24, 5)).astype(np.float32)

    def function(pair):
        return jnp.cumsum(pair[0]), pair[1].sum()

    def run(rows, mesh=None):
        return sharding.map_rows(function, (rows["a"], rows["b"]), mesh, at_once=at_once)

    rows = {"a": x, "b": x[:, :2]}
    on_mesh = jax.jit(lambda rows: run(rows, mesh))
    placed = sharding.place_rows(rows, mesh)
    for array, expected in zip(on_mesh(placed), run(rows), strict=True):
        np.testing.assert_allclose(array, expected, rtol=1e-6)
    assert "all-gather" not in on_mesh.lower(placed).compile().as_text()
