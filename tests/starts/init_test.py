"""Runs that start from a model: growth, sorting, and plain runs that go on."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from matta_jax import config as c
from matta_jax import extract, models, nesting, packages, starts, train
from matta_jax.checkpoints import Checkpoints, open_source
from matta_jax.elastic._opt_state import slice_opt_state
from matta_jax.errors import UserError
from matta_jax.sharding import make_mesh
from matta_jax.training import make_setup

NESTS = {
    "d_ff": {"d_ff": 48, "widths": [16, 32, 48]},
    "heads": {"num_heads": 4},
    "depth": {"num_layers": 4},
    "spread": {"num_layers": 3, "student_layers": "spread"},
    "d_model": {"d_model": 32, "num_heads": 4},
    "all": {"d_model": 32, "num_heads": 4, "d_ff": 32, "num_layers": 3},
}
TOKENS = np.random.default_rng(0).integers(0, 256, (2, 20))


@pytest.fixture(scope="module")
def student(run, tmp_path_factory):
    """The Student of the run's third step, with its optimiser state."""
    packaging = packages.Packaging(with_optimizer=True)
    return extract(
        f"{run[1]}@3", ["student"], tmp_path_factory.mktemp("student") / "s", packaging=packaging
    )[0].path


def starting(run, model, nest, **fields):
    """The run's config with another nest, starting from a model."""
    values = c.to_dict(run[0]) | {"nest": nest, "init": {"model": str(model)}}
    values["train"]["num_steps"] = 3
    for name, value in fields.items():
        section, field = name.split("__")
        values[section][field] = value
    return c.from_dict(values)


def start(config):
    """The TA's weights at the start, its architecture and the nest."""
    nest = nesting.nest_of(config)
    params, _ = starts.initial_params(config, starts.check_init(config), jnp.asarray(TOKENS))
    return params, models.architecture_of(config.model, nest, nest.ta), nest


def outputs(architecture, params):
    return np.asarray(
        models.logits(models.apply(architecture, params, TOKENS), params["embed"]["tokens"])
    )


def merged(params, architecture):
    """The weights by path, without granules."""
    names = nesting.flatten(models.logical_axes(architecture))
    return {
        path: nesting.merge_granules(leaf, names[path])
        for path, leaf in nesting.flatten(params).items()
    }


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=pytest.mark.slow) if kind in ("heads", "spread") else kind
        for kind in NESTS
    ],
)
def test_a_grown_ta_computes_the_students_function_and_holds_it_bit_for_bit(run, student, kind):
    old = packages.load_model(student)
    params, architecture, nest = start(starting(run, student, NESTS[kind]))
    np.testing.assert_allclose(
        outputs(architecture, params), outputs(old.architecture, old.params), atol=2e-5
    )
    sliced = nesting.slice_model(params, models.logical_axes(architecture), nest.student)
    own = dataclasses.replace(architecture, d_ff=nest.student.d_ff)
    for path, leaf in merged(old.params, old.architecture).items():
        np.testing.assert_array_equal(merged(sliced, own)[path], leaf)


def test_noisy_growth_keeps_the_student_and_moves_the_ta(run, student):
    old = packages.load_model(student)
    exact = outputs(old.architecture, old.params)
    distances = []
    for noise in (0.01, 0.1):
        config = starting(
            run, student, NESTS["d_ff"], init__growth="noisy", init__growth_noise=noise
        )
        params, architecture, nest = start(config)
        distances.append(np.abs(outputs(architecture, params) - exact).max())
        student_part = nesting.slice_model(params, models.logical_axes(architecture), nest.student)
        np.testing.assert_array_equal(
            student_part["embed"]["tokens"], old.params["embed"]["tokens"]
        )
    assert 1e-5 < distances[0] < distances[1] < 1


def test_a_grown_run_reports_both_losses_at_step_0(run, student, tmp_path):
    lines = []
    result = train(starting(run, student, NESTS["d_ff"]), tmp_path / "grown", log=lines.append)
    first = next(line for line in lines if line.startswith("step 0: "))
    values = dict(
        part.rsplit(" ", 1)
        for part in first.removeprefix("step 0: ").replace(" eval/", "\neval/").split("\n")
    )
    assert values["eval/student"] == values["eval/ta"] and float(values["eval/distill"]) == 0
    assert result.step == 3 and any(str(student) in line and "grew a TA" in line for line in lines)


def test_sorting_by_importance_keeps_the_function_and_betters_the_prefixes(run, tmp_path):
    """A model whose useful neurons stand last: sorted, its Student is better than unsorted."""
    ta = extract(str(run[1]), ["ta"], tmp_path / "ta")[0].path
    old = packages.load_model(ta)
    params = nesting.flatten(old.params)
    for path in ("w_in", "b_in", "w_out"):
        name = f"blocks/0/mlp/{path}"
        params[name] = params[name][:, ::-1]
    params["blocks/0/mlp/w_out"] = params["blocks/0/mlp/w_out"].at[:, 0].multiply(1e-3)
    shuffled = nesting.unflatten(params)
    model, nest = run[0].model, nesting.nest_of(run[0])
    architecture = models.architecture_of(model, nest, nest.ta)
    from matta_jax.starts._grow import sort_by_importance

    sorted_ = sort_by_importance(shuffled, architecture, jnp.asarray(TOKENS))
    whole = outputs(architecture, shuffled)
    np.testing.assert_allclose(outputs(architecture, sorted_), whole, atol=2e-5)
    narrow = dataclasses.replace(nest.ta, d_ff=(16,) * 3)

    def distance(params):
        own = nesting.slice_model(params, models.logical_axes(architecture), narrow)
        return np.abs(
            outputs(dataclasses.replace(architecture, d_ff=narrow.d_ff), own) - whole
        ).mean()

    assert distance(sorted_) < 0.8 * distance(shuffled)


def test_a_model_of_the_tas_sizes_becomes_the_ta(run, tmp_path):
    ta = extract(str(run[1]), ["ta"], tmp_path / "ta")[0].path
    nest = c.to_dict(run[0])["nest"]
    params, architecture, _ = start(starting(run, ta, nest))
    old = packages.load_model(ta)
    np.testing.assert_array_equal(
        outputs(architecture, params), outputs(old.architecture, old.params)
    )
    with pytest.raises(
        UserError,
        match="init.sort=True would scatter the sub-models of .* which was trained nested",
    ):
        start(starting(run, ta, nest, init__sort=True))
    exported = extract(str(run[1]), ["ta"], tmp_path / "hf", packaging=packages.Packaging("hf"))[
        0
    ].path
    foreign = starts.import_hf(
        exported, tmp_path / "foreign", tokenizer="byte"
    ).path  # Its nest is not known any more.
    sorted_, _, _ = start(starting(run, foreign, nest, init__sort=True))
    np.testing.assert_allclose(
        outputs(architecture, sorted_), outputs(old.architecture, old.params), atol=2e-5
    )
    assert not np.array_equal(
        sorted_["blocks"]["0"]["mlp"]["b_in"], params["blocks"]["0"]["mlp"]["b_in"]
    )


def test_a_plain_run_goes_on_from_the_same_step_with_the_same_moments(run, student, tmp_path):
    config = starts.plain_run(packages.open_model(student))
    lines = []
    result = train(config, tmp_path / "plain", log=lines.append)
    assert result.step == 6 and any(line.startswith("step 4/6") for line in lines)
    assert not any(line.startswith("step 3/6") for line in lines)
    without = dataclasses.replace(config, init=dataclasses.replace(config.init, optimizer=False))
    lines.clear()
    train(without, tmp_path / "fresh", log=lines.append)
    assert any(line.startswith("step 1/6") for line in lines)


def test_a_resumed_run_does_not_need_its_model_any_more(run, student, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(student, copy)
    config = starts.plain_run(packages.open_model(copy))
    first = train(config, tmp_path / "plain")
    shutil.rmtree(copy)
    assert train(config, tmp_path / "plain").metrics == first.metrics


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


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_from_the_extracted_state_is_the_students_step_in_place(trained_state, name):
    setup, params, opt_state, source = trained_state(name, **OPTIMIZERS[name])
    student, axes = setup.nest.student, setup.axes
    sliced = lambda tree: nesting.slice_model(tree, axes, student)
    gradient = jax.tree.map(np.asarray, random_like(params, jax.random.key(9)))
    alone = jax.tree.map(np.zeros_like, gradient)
    sizes = nesting.sizes_of(student, student.d_ff[0]) | {"layers": student.layers}
    for path, leaf in nesting.flatten(sliced(gradient)).items():
        nesting.place_array(leaf, nesting.flatten(alone)[path], nesting.flatten(axes)[path], sizes)
    updates, _ = jax.jit(setup.optimizer.update)(alone, opt_state, params)
    in_place = sliced(optax.apply_updates(params, updates))

    [own_state] = slice_opt_state(source, [student])
    plain = make_setup(
        packages.plain_config(setup.config, source.architecture_of(student)), make_mesh((1, 1, 1))
    )
    architecture = models.architecture_of(plain.config.model, plain.nest, plain.nest.ta)
    regranulate = lambda tree: packages.regranulate(tree, plain.axes, architecture)
    own = regranulate(sliced(params))
    updates, _ = jax.jit(plain.optimizer.update)(regranulate(sliced(gradient)), own_state, own)
    by_path = nesting.flatten(regranulate(in_place))
    for path, leaf in nesting.flatten(optax.apply_updates(own, updates)).items():
        np.testing.assert_allclose(leaf, by_path[path], rtol=2e-5, atol=2e-6, err_msg=path)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_moments_are_sliced_as_their_weights(trained_state, name):
    setup, params, opt_state, source = trained_state(name)
    uniform = nesting.parse_spec("layers=0,2;d_ff=32", setup.nest)
    [own] = slice_opt_state(source, [uniform])
    moment = lambda state: next(
        leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]
        if "mu" in jax.tree_util.keystr(path) and "w_in" in jax.tree_util.keystr(path)
    )
    expected = moment(opt_state)[jnp.array([0, 2]), :2]  # Two of three granules of 16.
    np.testing.assert_array_equal(
        moment(own)[:, 0], np.concatenate([expected[:, 0], expected[:, 1]], axis=-1)
    )
    assert params["embed"]["tokens"].shape[1] == moment(own).shape[2] == 24


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
    [own] = slice_opt_state(source, [setup.nest.student])
    plain = packages.plain_config(setup.config, source.architecture_of(setup.nest.student))
    expected = jax.eval_shape(
        make_setup(plain, make_mesh((1, 1, 1))).optimizer.init, start_shapes(plain)
    )
    assert jax.tree.map(jnp.shape, own) == jax.tree.map(jnp.shape, expected)
    find = lambda state, *words: next(
        np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]
        if all(
            f"{word}" in jax.tree_util.keystr(path, simple=True, separator="/").split("/")
            for word in words
        )
    )
    if not sizes:  # Too small to factor: the slice itself.
        np.testing.assert_array_equal(
            find(own, "v", "embed", "tokens"), find(opt_state, "v", "embed", "tokens")[:, :16]
        )
        return
    row, column = (
        find(opt_state, "v_row", "embed", "tokens"),
        find(opt_state, "v_col", "embed", "tokens"),
    )
    whole = np.outer(column, row / row.mean())[
        :, :128
    ]  # [V, D]: V is the largest axis, D the second.
    np.testing.assert_allclose(find(own, "v_row", "embed", "tokens"), whole.mean(0), rtol=1e-5)
    np.testing.assert_allclose(find(own, "v_col", "embed", "tokens"), whole.mean(1), rtol=1e-5)


def start_shapes(config):
    nest = nesting.nest_of(config)
    return models.abstract_params(models.architecture_of(config.model, nest, nest.ta))


def test_optimiser_states_that_cannot_go_along_are_refused(run, trained_state, tmp_path):
    with_optimizer = packages.Packaging(with_optimizer=True)
    with pytest.raises(
        UserError, match="d_ff=48,16,48: a model of mixed widths cannot be trained on"
    ):
        extract(str(run[1]), ["d_ff=48,16,48"], tmp_path / "a", packaging=with_optimizer)
    with pytest.raises(UserError, match="num_heads=3 of 8 do not make d_model=16"):
        extract(str(run[1]), ["d_model=16;d_ff=16"], tmp_path / "a", packaging=with_optimizer)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"model__d_ff": 32},
            "neither the Student nor the TA of this run: model.d_ff=16 there, 32 here",
        ),
        ({"model__vocab_size": 300}, "model.vocab_size=256 there, 300 here"),
        ({"init__sort": True}, "init.sort=True needs an init.model of the TA's sizes"),
        ({"init__model": "/nowhere"}, "'/nowhere' is not an extracted model"),
    ],
)
def test_models_that_do_not_fit_are_refused_before_anything_is_written(
    run, student, tmp_path, fields, words
):
    with pytest.raises(UserError, match=words) as error:
        train(starting(run, student, {"d_ff": 64}, **fields), tmp_path / "w")
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"optimizer": {"name": "lion"}},
            "state of another optimiser .it differs in optimizer.name.; set these as there",
        ),
        ({"train": {"num_steps": 3}}, "is of step 3, but train.num_steps=3; raise it"),
    ],
)
def test_optimiser_states_that_do_not_fit_are_refused(student, tmp_path, fields, words):
    values = c.to_dict(starts.plain_run(packages.open_model(student)))
    for section, own in fields.items():
        values[section] |= own
    with pytest.raises(UserError, match=words):
        train(c.from_dict(values), tmp_path / "w")
    assert not list(tmp_path.iterdir())
