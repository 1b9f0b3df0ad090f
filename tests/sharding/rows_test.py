"""Devices that compute with their own rows: what crosses is gathered, summed and cut right."""

import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from matta_jax.sharding import Rows, collectives, make_mesh, placement
from matta_jax.sharding._rows import _missing, _reduce_scatter

MATRIX = ("d_ff_granules", "d_model", "d_ff")
TABLE = ("vocab", "d_model")
VECTOR = ("d_ff_granules", "d_ff")
AXES = {
    "embed": {"tokens": TABLE},
    "blocks": {"0": {"w": ("layers", *MATRIX), "b": ("layers", *VECTOR)}},
}
SIZES = [(8, 1, 1), (1, 8, 1), (2, 4, 1), (1, 4, 2), (2, 2, 2)]


def weights():
    draw = np.random.default_rng(0).normal
    return {
        "embed": {"tokens": jnp.asarray(draw(size=(32, 16)), jnp.float32)},
        "blocks": {
            "0": {
                "w": jnp.asarray(draw(size=(2, 3, 16, 8)), jnp.float32),
                "b": jnp.asarray(draw(size=(2, 3, 8)), jnp.float32),
            }
        },
    }


def rows_on(sizes, *, once=True, **fields):
    fields = {"dtype": "float32", "reduce_dtype": "compute"} | fields
    return Rows(make_mesh(sizes), None, once=once, **fields)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("once, late", [(True, False), (False, False), (False, True)])
def test_weights_come_together_and_gradients_are_summed_over_rows(sizes, once, late):
    """A device's gradient is its weights times the sum of its rows."""
    rows = rows_on(sizes, once=once, late=late)
    params = weights()
    batch = jnp.arange(1.0, 9.0)

    def on_device(shards, batch):
        def moved(move, tree):
            if once:
                return tree
            # As a layer does with its own.
            layers = jax.tree.map(move, tree["blocks"], AXES["blocks"])
            return tree | {"blocks": layers}

        whole = moved(rows.placement.gather, rows.together(shards, AXES))
        assert jax.tree.map(jnp.shape, whole) == jax.tree.map(jnp.shape, params)
        gradient = jax.tree.map(lambda weight: weight * batch.sum(), whole)
        gradient = moved(rows.placement.scatter, gradient)
        return rows.sum(batch.sum()), rows.finish(rows.apart(gradient, AXES), AXES)

    total, gradient = jax.jit(rows.run(on_device, AXES))(params, batch)
    assert total == 36
    for summed, weight in zip(*map(jax.tree.leaves, (gradient, params)), strict=True):
        np.testing.assert_allclose(summed, 36 * weight, rtol=1e-6)
    weight = gradient["blocks"]["0"]["w"]
    assert weight.sharding.shard_shape(weight.shape)[2] == 16 // sizes[1]


def test_streams_take_turns_but_beside_a_tensor_axis():
    """There one's sums over devices go on beside another's products."""
    for sizes, takes_turns in (((2, 4, 1), True), ((2, 2, 2), False)):
        assert rows_on(sizes).placement.takes_turns == takes_turns
        assert placement(make_mesh(sizes)).takes_turns == takes_turns


@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize(
    "shape", [(8, 16, 24), (32, 32, 128), (16, 16, 120)], ids=["rows", "tiles", "filled"]
)
def test_each_axis_of_an_array_can_be_cut(position, shape):
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    spec = P(*(["fsdp" if i == position else None for i in range(3)]))
    summed = jax.jit(
        jax.shard_map(
            lambda x: _reduce_scatter(x, "fsdp", position),
            mesh=make_mesh((1, 8, 1)),
            in_specs=P(),
            out_specs=spec,
            check_vma=False,
        )
    )(array)
    np.testing.assert_allclose(summed, 8 * array, rtol=1e-6)


def test_an_array_is_filled_up_to_tiles_where_that_adds_little():
    assert _missing((16, 16, 120), 8) == 8
    assert _missing((32, 32, 128), 8) == _missing((8, 16, 24), 8) == _missing((24,), 8) == 0
    assert _missing((1024, 50257), 8) == 15  # A vocabulary of GPT-2, cut by columns.


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_a_table_of_uneven_rows_is_summed_and_cut_at_once_on_a_tpu(tpu_mesh):
    mesh = tpu_mesh((1, 8, 1))
    summed = jax.shard_map(
        lambda x: _reduce_scatter(x, "fsdp", 1),
        mesh=mesh,
        in_specs=P(),
        out_specs=P(None, "fsdp"),
        check_vma=False,
    )
    table = jax.ShapeDtypeStruct((1001, 1024), jnp.float32, sharding=NamedSharding(mesh, P()))
    moved = collectives(jax.jit(summed).lower(table).compile().as_text())
    kinds = {each.kind for each in moved if each.bytes > 1001 * 1024 * 4 // 100}
    assert kinds == {"reduce-scatter"}


def test_what_crosses_is_rounded_and_tables_are_added_up_in_float32():
    rows = rows_on((1, 8, 1), dtype="bfloat16")
    wide = rows_on((1, 8, 1), dtype="bfloat16", reduce_dtype="float32")

    def types(rows):
        def on_device(shards, batch):
            whole = rows.together(shards, AXES)
            seen.append(jax.tree.map(lambda weight: weight.dtype.name, whole))
            return rows.sum(batch.sum()), rows.apart(whole, AXES)

        seen = []
        jax.eval_shape(rows.run(on_device, AXES), weights(), jnp.ones(8))
        return seen[0]["embed"]["tokens"], seen[0]["blocks"]["0"]["w"], seen[0]["blocks"]["0"]["b"]

    def crossing(rows):
        def on_device(shards, batch):
            whole = rows.together(shards, AXES)
            return rows.sum(batch.sum()), rows.apart(whole, AXES)

        program = str(jax.make_jaxpr(rows.run(on_device, AXES))(weights(), jnp.ones(8)))
        short = dict(bf16="bfloat16", f32="float32")
        return {short[name] for name in re.findall(r":(\w+)\[[\d,]*\] = reduce_scatter", program)}

    assert types(rows) == ("float32", "bfloat16", "bfloat16")
    # Vectors are summed as before: few numbers, and no fan-in.
    assert types(wide) == ("float32", "float32", "bfloat16")
    # Between devices a table's gradient is as narrow as a matrix's.
    assert crossing(rows) == {"bfloat16"}
    assert crossing(wide) == {"float32"}
    compiled = jax.jit(
        rows.run(lambda s, b: (rows.sum(b.sum()), rows.apart(rows.together(s, AXES), AXES)), AXES)
    )
    result = compiled(weights(), jnp.ones(8))[1]["embed"]["tokens"]
    rounded = weights()["embed"]["tokens"].astype(jnp.bfloat16).astype(jnp.float32)
    np.testing.assert_array_equal(result, 8 * rounded)
