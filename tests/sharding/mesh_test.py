import dataclasses
import functools
import importlib.util
import math

import jax
import numpy as np
import pytest

from matta_jax import config as c
from matta_jax.errors import UserError
from matta_jax.nesting import narrow, sizes_of
from matta_jax.sharding import (
    batch_sharding,
    check_mesh,
    collectives,
    make_mesh,
    own_rows,
    param_shardings,
    place,
    place_batch,
)
from matta_jax.training import make_eval_step, make_setup, make_train_step
from matta_jax.training._dry_run import compile_step


@pytest.mark.parametrize(
    ("mesh", "sizes"),
    [
        (c.MeshConfig(fsdp=2, tensor=2), (2, 2, 2, 1)),
        (c.MeshConfig(data=1, fsdp=-1, tensor=2), (1, 4, 2, 1)),
        (c.MeshConfig(data=2, tensor=-1), (2, 1, 4, 1)),
        (c.MeshConfig(tensor=2, context=4), (1, 1, 2, 4)),
        (c.MeshConfig(data=3), (3, 1, 1, 1)),  # The rest stays idle.
    ],
)
def test_minus_one_takes_the_devices_that_are_left(mesh, sizes):
    assert check_mesh(mesh, batch_size=24, microbatches=1, num_devices=8) == sizes


@pytest.mark.parametrize(
    ("mesh", "batch", "words"),
    [
        (
            c.MeshConfig(data=4, fsdp=4),
            16,
            ["mesh.data=4 x mesh.fsdp=4 needs 16", "there are 8", "fits: mesh.data=2"],
        ),
        (
            c.MeshConfig(fsdp=16),
            16,
            ["mesh.fsdp=16", "divide the 8", "nearest that fits: mesh.fsdp=8"],
        ),
        (
            c.MeshConfig(fsdp=3),
            6,
            ["mesh.fsdp=3 needs 3", "divide the 8", "nearest that fits: mesh.fsdp=2"],
        ),
        (
            c.MeshConfig(data=16, fsdp=16),
            256,
            ["mesh.data=16 x mesh.fsdp=16 needs 256", "lower two of them"],
        ),
        (c.MeshConfig(data=4), 6, ["data.batch_size=6", "multiple of 4", "use 8"]),
    ],
)
def test_impossible_meshes_say_which_number_is_wrong(mesh, batch, words):
    with pytest.raises(UserError) as error:
        check_mesh(mesh, batch_size=batch, microbatches=1, num_devices=8)
    for word in words:
        assert word in str(error.value)


class SliceDevice:
    """A device that tells its slice, as TPUs do, and GPUs their machine."""

    device_kind, process_index, core_on_chip = "fake", 0, 0

    def __init__(self, id, slice_index, platform="tpu"):
        self.id, self.slice_index, self.platform = id, slice_index, platform
        self.coords = (id // 2, 0, 0)


def test_data_are_split_across_slices_and_all_else_lies_within_one():
    config = c.MeshConfig(data=-1, fsdp=4, slices=2)
    assert check_mesh(config, batch_size=24, microbatches=1, num_devices=8) == (2, 4, 1, 1)
    for fields, words in (
        ({"fsdp": 8}, "mesh.data=1 must be a multiple of mesh.slices=2: data .* divide the 4 dev"),
        (
            {"data": 3, "fsdp": 1},
            "mesh.data=3 must be a multiple of mesh.slices=2.*; use mesh.da.*=8",
        ),
        ({"slices": 3}, "mesh.slices=3 must divide the 8 devices; use 1"),
    ):
        with pytest.raises(UserError, match=words):
            check_mesh(
                dataclasses.replace(config, **fields), batch_size=24, microbatches=1, num_devices=8
            )
    # In whatever order the devices come.
    devices = [SliceDevice(i, slice_index=i % 2) for i in range(8)]
    mesh = make_mesh((4, 1, 2), devices, slices=2)
    rows = [{device.slice_index for device in row.ravel()} for row in mesh.devices]
    assert rows == [{0}, {0}, {1}, {1}]
    for slices in (1, 4):
        with pytest.raises(UserError, match=f"slices={slices}, but the devices are of 2; use 2"):
            make_mesh((4, 1, 2), devices, slices=slices)
    gpus = [SliceDevice(i, slice_index=i // 4, platform="gpu") for i in range(8)]
    assert [device.id for device in make_mesh((8, 1, 1), gpus).devices.ravel()] == list(range(8))
    assert make_mesh((4, 1, 2), slices=2) == make_mesh((4, 1, 2))
    # A TPU of one slice need not tell.
    one = [SliceDevice(i, slice_index=None) for i in range(8)]
    with pytest.raises(UserError, match="mesh.slices=2, but the devices are of 1; use 1"):
        make_mesh((8, 1, 1), one, slices=2)


def test_an_axis_that_does_not_divide_is_named(tiny):
    for fields, sizes, words in (
        (
            {},
            (1, 1, 2),
            "mesh.tensor=2 must divide the common granule of 1 of heads .*; use mesh.tensor=1, or "
            "sizes",
        ),
        (
            WIDE | {"model__vocab_size": 257},
            (1, 1, 2),
            r"tensor=2 must divide the vocab of 257 .*, or vocab of 258",
        ),
        (
            WIDE | {"model__d_ff": 18, "nest__d_ff": 36, "nest__widths": []},
            (1, 1, 4),
            "granule of 18 of d_ff",
        ),
        (
            {},
            (1, 5, 1),
            r"mesh.fsdp=5 must divide the d_model of 24 .*use mesh.fsdp=4, or d_model of 25",
        ),
    ):
        if "d_ff" in words:
            fields = fields | {"model__num_heads": 4, "nest__num_heads": 8}
        with pytest.raises(UserError, match=words):
            make_setup(tiny(**fields), make_mesh(sizes))


@pytest.mark.parametrize("sizes", [(8, 1, 1), (1, 4, 2), (2, 1, 4)])
def test_a_batch_lies_where_its_rows_belong(sizes):
    mesh = make_mesh(sizes)
    rows = {"tokens": np.arange(48).reshape(8, 6), "length": np.arange(8)}
    np.testing.assert_array_equal(own_rows(mesh, 8), np.arange(8))
    placed = place_batch(rows, mesh, 8)
    for name, array in placed.items():
        np.testing.assert_array_equal(array, rows[name])
        assert array.sharding == batch_sharding(mesh)
    weight = np.arange(16.0).reshape(4, 4)
    put = place(
        {"w": weight}, {"w": param_shardings({"w": weight}, {"w": ("d_model", "d_ff")}, mesh)["w"]}
    )
    np.testing.assert_array_equal(put["w"], weight)


WIDE = {"model__num_heads": 2, "nest__num_heads": 4, "nest__d_model": 32, "data__batch_size": 8}


@functools.cache
def losses(config, sizes, steps=4):
    setup = make_setup(config, make_mesh(sizes))
    state, step = setup.init(), make_train_step(setup)
    rng = np.random.default_rng(0)
    result = []
    for _ in range(steps):
        batch = {
            "tokens": rng.integers(0, 256, (8, 33), dtype=np.int32),
            "length": rng.integers(1, 33, 8, dtype=np.int32),
        }
        state, metrics = step(state, place_batch(batch, setup.mesh))
        result.append({name: float(value) for name, value in metrics.items()})
    sums = make_eval_step(setup)(state.params, place_batch(batch, setup.mesh))
    return result, {name: float(value) for name, value in sums.items()}, state


STUDENT = {
    "model__d_model": 32,
    "model__num_heads": 8,
    "model__d_ff": 64,
    "nest__d_model": 32,
    "nest__num_heads": 8,
    "nest__num_layers": 2,
    "nest__d_ff": 64,
    "nest__widths": [],
    "data__batch_size": 8,
}
NESTINGS = {
    "layer": {"nest__d_ff": 128, "nest__num_heads": 16, "nest__widths": [64, 128]},
    "depth": {"nest__num_layers": 3},
    "d_model": {"nest__d_model": 64},
}
# Epsilon keeps Adam from turning rounding into steps.
OPTIMIZERS = {
    "adamw": {"optimizer__eps": 1e-3},
    "shampoo": {
        "optimizer__name": "shampoo",
        "optimizer__learning_rate": 3e-3,
        "shampoo__block_size": 16,
        "shampoo__start_step": 2,
    },
}


ON_ALL_AXES = [((2, 2, 2), nesting, "shampoo") for nesting in NESTINGS]
ON_ONE_AXIS = [(sizes, "layer", "adamw") for sizes in ((8, 1, 1), (1, 8, 1), (1, 1, 8))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "nesting", "optimizer"),
    [
        *ON_ALL_AXES,
        *ON_ONE_AXIS,
        ((1, 2, 2, 2), "layer", "shampoo"),
    ],
    ids=str,
)
def test_a_run_and_its_student_are_the_same_on_any_mesh(tiny, sizes, nesting, optimizer):
    config = tiny(**STUDENT | NESTINGS[nesting] | OPTIMIZERS[optimizer])
    one, one_eval, expected = losses(config, (1, 1, 1), steps=5)
    many, many_eval, state = losses(config, sizes, steps=5)
    for a, b in zip(one, many, strict=True):
        for name in set(a) & {"loss", "student", "ta", "distill", "mix_0"}:
            assert a[name] == pytest.approx(b[name], rel=1e-5), name
    assert one_eval == pytest.approx(many_eval, rel=1e-5)
    setup = make_setup(config, make_mesh(sizes))
    students = [
        narrow(jax.device_get(each.params), setup.axes, sizes_of(setup.nest.student))
        for each in (state, expected)
    ]
    for (
        student
    ) in students:  # Keys' biases have a gradient of zero; RMSProp makes steps of its rounding.
        for block in student["blocks"].values():
            block["attention"]["b_qkv"] = block["attention"]["b_qkv"][:, :, 0::2]
    for a, b in zip(*map(jax.tree.leaves, students), strict=True):
        np.testing.assert_allclose(
            a, b, atol={"adamw": 1e-5, "shampoo": 1e-4}[optimizer]
        )  # Of steps of 1e-2, 1e-2.
    weight = state.params["blocks"]["0"]["mlp"]["w_in"]  # [layers, granules, d_model, d_ff]
    shard = weight.sharding.shard_shape(weight.shape)
    assert shard[2:] == (weight.shape[2] // sizes[1], weight.shape[3] // sizes[2])
    assert state.params["embed"]["tokens"].sharding.shard_shape((256, 64))[0] == 256 // sizes[2]
    if optimizer == "adamw":
        moment = state.opt_state[1].mu["blocks"]["0"]["mlp"]["w_in"]
        assert moment.sharding == weight.sharding


@pytest.mark.slow
def test_accumulated_microbatches_with_uneven_masks_equal_one(tiny):
    one, _, a = losses(tiny(**WIDE), (1, 1, 1))
    many, _, b = losses(tiny(**WIDE, train__microbatches=4), (1, 1, 1))
    for left, right in zip(one, many, strict=True):
        assert left == pytest.approx(right, rel=1e-4)
    for left, right in zip(jax.tree.leaves(a.params), jax.tree.leaves(b.params), strict=True):
        np.testing.assert_allclose(left, right, atol=2e-3)


@pytest.mark.slow
def test_the_second_step_and_the_ramp_do_not_recompile(tiny):
    setup = make_setup(tiny(**WIDE), make_mesh((2, 2, 2)))
    state, step = setup.init(), make_train_step(setup)
    batch = {"tokens": np.zeros((8, 33), np.int32), "length": np.full(8, 32, np.int32)}
    scales = []
    for _ in range(3):
        state, metrics = step(state, place_batch(batch, setup.mesh))
        scales.append(float(metrics["distill_scale"]))
    assert step._cache_size() == 1 and scales[0] == 0 < scales[1]


def step_collectives(config, mesh):
    return collectives(compile_step(make_setup(config, mesh)).as_text())


def moved(found, *kinds):
    return sum(one.bytes * one.times for one in found if not kinds or one.kind in kinds)


# Heads, granules and d_model that two and four devices divide; the TA of two widths, without mixes.
NESTED = {
    "model__num_layers": 3,
    "model__d_model": 32,
    "model__num_heads": 4,
    "model__d_ff": 64,
    "nest__num_layers": 3,
    "nest__d_model": 32,
    "nest__num_heads": 4,
    "nest__d_ff": 128,
    "nest__widths": [64, 128],
    "nest__mix_per_step": 0,
    "data__batch_size": 8,
    "mesh__data": -1,
}
ALONE = {"model__d_ff": 128, "nest__widths": []}
FAMILIES = {
    "gpt": {},
    "llama": {
        "model__name": "llama",
        "model__num_kv_heads": 4,
        "nest__num_heads": None,
        "nest__num_kv_heads": 4,
    },
}


def check_collectives(family, tiny, make, *kinds):
    """What one joint step moves, against its TA alone."""
    nested = NESTED | FAMILIES[family]
    runs = (nested, nested | ALONE)
    for sizes in ((1, 8, 1), (2, 4, 1)):
        joint, alone = (step_collectives(tiny(**fields), make(sizes)) for fields in runs)
        assert moved(joint, *kinds) <= 1.05 * moved(alone, *kinds), sizes
        for kind in ("collective-permute", "all-to-all"):
            assert moved(joint, kind) == moved(alone, kind), sizes
    joint, alone = (step_collectives(tiny(**fields), make((1, 2, 4))) for fields in runs)
    for kind in ("collective-permute", "all-to-all"):
        assert moved(joint, kind) == moved(alone, kind)
    # The Student's activations: after attention and MLP of each layer, forwards and backwards; its
    # embedding, its loss.
    tokens, layers, d_model = 8 * 32 // 2, 3, 32
    own = tokens * d_model * 4 * (4 * layers + 4)
    assert moved(joint, *kinds) <= 1.05 * moved(alone, *kinds) + own
    assert not [
        one for one in joint if one.kind == "all-gather" and (256, d_model) in one.shapes
    ], "the whole table"


@pytest.mark.slow
def test_a_joint_step_gathers_what_its_ta_gathers(tiny):
    """The CPU's compiler adds up the gradients of Student and TA only after it has summed them over
    devices.
    """
    check_collectives("gpt", tiny, make_mesh, "all-gather")


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (extra: tpu)"
)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_joint_step_moves_what_its_ta_moves_on_a_tpu(tiny, tpu_mesh, family):
    check_collectives(family, tiny, tpu_mesh)


# Weights of whole tiles, as all are in models that need a TPU.
TILED = NESTED | {
    "model__d_model": 128,
    "nest__d_model": 128,
    "model__d_ff": 256,
    "nest__d_ff": 512,
    "nest__widths": [256, 512],
    "model__compute_dtype": "bfloat16",
    "train__microbatches": 2,
    "data__batch_size": 16,
}


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (extra: tpu)"
)
@pytest.mark.parametrize("gather", ["microbatch", "step"])
def test_gradients_of_members_and_mixes_cross_once_on_a_tpu(tiny, tpu_mesh, gather):
    """Slow: compiles for a TPU. What fills tiles is reduced and scattered at once; with `step`
    nothing moves in the loop over microbatches.
    """
    fields = TILED | {"train__gather": gather}
    alone = fields | {"model__d_ff": 512, "nest__widths": []}
    mesh = tpu_mesh((1, 8, 1))

    def sent(found):
        return sum(one.sent * one.times for one in found)

    joint = step_collectives(tiny(**fields | {"nest__mix_per_step": 1}), mesh)
    assert sent(joint) <= 1.05 * sent(step_collectives(tiny(**alone), mesh))
    reduced = [one for one in joint if one.kind == "all-reduce"]
    # Numbers, and weights of which a device's part is less than a tile.
    largest = max(math.prod(shape) for one in reduced for shape in one.shapes)
    assert largest < 8 * 2048 and len([one for one in joint if one.kind == "reduce-scatter"]) >= 4
    in_loop = [one for one in joint if one.in_loop and one.kind != "all-reduce"]
    assert bool(in_loop) == (gather == "microbatch")


@pytest.mark.slow
def test_fp32_reductions_change_the_sum_and_nothing_else(tiny):
    """In float32 they change nothing; in bfloat16 the gradient comes closer to that of float32."""
    batch = {
        "tokens": np.arange(8 * 33, dtype=np.int32).reshape(8, 33) % 251,
        "length": np.full(8, 32, np.int32),
    }

    def gradient_norm(**fields):
        setup = make_setup(tiny(**WIDE, nest__mix_per_step=0, **fields), make_mesh((2, 2, 2)))
        return float(
            make_train_step(setup)(setup.init(), place_batch(batch, setup.mesh))[1]["grad_norm"]
        )

    exact = gradient_norm()
    assert gradient_norm(model__reduce_dtype="float32") == pytest.approx(exact, rel=1e-6)
    half = {"model__compute_dtype": "bfloat16"}
    errors = {
        name: abs(gradient_norm(**half, model__reduce_dtype=name) - exact)
        for name in ("compute", "float32")
    }
    assert errors["float32"] < 0.02 * exact


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (extra: tpu)"
)
def test_fp32_reductions_are_fp32_on_a_tpu(tiny, tpu_mesh):
    """On CPUs every reduction of bfloat16 is one of float32."""

    def moved_by(sizes, kind, **fields):
        config = tiny(**NESTED, model__compute_dtype="bfloat16", **fields)
        found = step_collectives(config, tpu_mesh(sizes))
        return sum(one.bytes * one.times for one in found if one.in_loop and one.kind == kind)

    wide = {"model__reduce_dtype": "float32"}
    assert moved_by((8, 1, 1), "all-reduce", **wide) > 1.9 * moved_by((8, 1, 1), "all-reduce")
    assert moved_by((1, 8, 1), "all-gather", **wide) == moved_by(
        (1, 8, 1), "all-gather"
    )  # Still in bfloat16.
