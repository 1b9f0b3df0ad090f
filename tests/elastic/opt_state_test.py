"""A sub-model's part of the optimiser state is the state of a plain run."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from matta_jax import config as c
from matta_jax import models, nesting, packages
from matta_jax.checkpoints import Checkpoints, open_source
from matta_jax.elastic._opt_state import _Slicer, slice_opt_state
from matta_jax.errors import UserError
from matta_jax.sharding import make_mesh
from matta_jax.training import make_setup

OPTIMIZERS = {
    "adamw": {},
    "lion": {},
    "shampoo": {
        "shampoo__block_size": 8,
        "shampoo__start_step": 0,
        "shampoo__precondition_every": 1,
        "shampoo__epsilon": 1e-3,
    },
}


@pytest.fixture(scope="module")
def trained_state(tiny, tmp_path_factory):
    """`trained_state(optimizer, **fields)`: the set-up, state and source of a checkpoint after
    three random updates.
    """

    def make(name, **fields):
        setup = make_setup(tiny(optimizer__name=name, **fields), make_mesh((1, 1, 1)))
        state = setup.init()
        params, opt_state = state.params, state.opt_state
        update = jax.jit(setup.optimizer.update)
        for key in jax.random.split(jax.random.key(1), 3):
            updates, opt_state = update(random_like(params, key), opt_state, params)
            params = optax.apply_updates(params, updates)
        folder = tmp_path_factory.mktemp(name)
        trees = {"params": params, "opt_state": opt_state, "step": {"step": jnp.int32(3)}}
        with Checkpoints(folder / "checkpoints") as checkpoints:
            meta = {"config": c.to_dict(setup.config)}
            checkpoints.save(3, trees, meta, loss=1.0, units=setup.units)
        return setup, params, opt_state, open_source(str(folder))

    return make


def random_like(tree, key):
    leaves, treedef = jax.tree.flatten(tree)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(
        treedef, [jax.random.normal(k, leaf.shape) for k, leaf in zip(keys, leaves, strict=True)]
    )


@pytest.fixture(scope="module")
def trained_states(trained_state):
    """`trained_states(name)`: `trained_state` of OPTIMIZERS, made once."""
    return functools.cache(lambda name: trained_state(name, **OPTIMIZERS[name]))


# The Student; and a model of three heads of 8 in a residual stream of 16.
@pytest.mark.few(2)
@pytest.mark.parametrize(
    "spec", ["student", pytest.param("d_model=16;d_ff=16", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_from_the_extracted_state_is_the_sub_models_step_in_place(
    trained_states, name, spec
):
    setup, params, opt_state, source = trained_states(name)
    sub_model, axes = nesting.parse_spec(spec, setup.nest), setup.axes

    def sliced(tree):
        return nesting.slice_model(tree, axes, sub_model)

    gradient = jax.tree.map(np.asarray, random_like(params, jax.random.key(9)))
    # The TA's gradient where only the sub-model has one.
    part_gradient = jax.tree.map(np.zeros_like, gradient)
    targets, names = nesting.flatten(part_gradient), nesting.flatten(axes)
    sizes = nesting.sizes_of(sub_model) | {"layers": sub_model.layers}
    for path, leaf in nesting.flatten(sliced(gradient)).items():
        nesting.place_array(leaf, targets[path], names[path], sizes)
    updates, _ = jax.jit(setup.optimizer.update)(part_gradient, opt_state, params)
    in_place = sliced(optax.apply_updates(params, updates))

    [plain_state] = slice_opt_state(source, [sub_model])
    config = packages.plain_config(setup.config, source.architecture_of(sub_model))
    plain = make_setup(config, make_mesh((1, 1, 1)))

    def regranulated(tree):
        return nesting.regranulate(tree, plain.axes, plain.nest.granules)

    plain_params, plain_gradient = regranulated(sliced(params)), regranulated(sliced(gradient))
    updates, _ = jax.jit(plain.optimizer.update)(plain_gradient, plain_state, plain_params)
    expected = nesting.flatten(regranulated(in_place))
    for path, leaf in nesting.flatten(optax.apply_updates(plain_params, updates)).items():
        np.testing.assert_allclose(leaf, expected[path], rtol=2e-5, atol=2e-6, err_msg=path)


def test_a_state_that_cannot_be_cut_ends_in_one_line(trained_states):
    source = trained_states("shampoo")[3]
    # The TA's matrices have blocks of one side alone, the Student's of both.
    fields = {"max_dim": 20, "beyond_max_dim": "one_sided"}
    shampoo = dataclasses.replace(source.config.shampoo, **fields)
    config = dataclasses.replace(source.config, shampoo=shampoo)
    slicer = _Slicer(dataclasses.replace(source, config=config), source.nest.student)
    words = r"with_optimizer: .* beyond shampoo.max_dim=20, .*, or extract without the optimiser"
    with pytest.raises(UserError, match=words):
        slicer._slice_shampoo(None)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_moments_are_sliced_as_their_weights(trained_state, name):
    setup, params, opt_state, source = trained_state(name)
    uniform = nesting.parse_spec("layers=0,2;d_ff=32", setup.nest)
    [state] = slice_opt_state(source, [uniform])

    def moment(state):
        leaves, _ = jax.tree_util.tree_flatten_with_path(state)
        names = [(jax.tree_util.keystr(path), leaf) for path, leaf in leaves]
        return next(leaf for name, leaf in names if re.search("mu|trace", name) and "w_in" in name)

    # Two of three granules of 16.
    expected = moment(opt_state)[jnp.array([0, 2]), :2]
    np.testing.assert_array_equal(
        moment(state)[:, 0], np.concatenate([expected[:, 0], expected[:, 1]], axis=-1)
    )
    assert params["embed"]["tokens"].shape[1] == moment(state).shape[2] == 24


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {
            "model__d_model": 128,
            "nest__d_model": 160,
            "model__d_ff": 128,
            "nest__d_ff": 384,
            "nest__widths": [128, 256, 384],
            "model__num_heads": 16,
            "nest__num_heads": 20,
        },
    ],
)
def test_a_factored_moment_is_put_together_sliced_and_factored_again(trained_state, sizes):
    setup, _, opt_state, source = trained_state("adafactor", **sizes)
    [state] = slice_opt_state(source, [setup.nest.student])
    config = packages.plain_config(setup.config, source.architecture_of(setup.nest.student))
    optimizer = make_setup(config, make_mesh((1, 1, 1))).optimizer
    expected = jax.eval_shape(optimizer.init, models.plan_of(config).abstract)
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, expected)

    if not sizes:  # Too small to factor: the slice itself.
        np.testing.assert_array_equal(
            table_moment(state, "v"), table_moment(opt_state, "v")[:, :16]
        )
        return
    row, column = table_moment(opt_state, "v_row"), table_moment(opt_state, "v_col")
    # [V, D]: V is the largest axis, D the second.
    moment = np.outer(column, row / row.mean())[:, :128]
    np.testing.assert_allclose(table_moment(state, "v_row"), moment.mean(0), rtol=1e-5)
    np.testing.assert_allclose(table_moment(state, "v_col"), moment.mean(1), rtol=1e-5)


def table_moment(state, kind):
    """What Adafactor's state keeps of the table of tokens."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    for path, leaf in leaves:
        words = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        if {kind, "embed", "tokens"} <= set(words):
            return np.asarray(leaf)
    raise AssertionError(f"no {kind} of the table")
