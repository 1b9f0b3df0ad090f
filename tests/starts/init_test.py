"""Runs that start from a model: of the Student's sizes, of the TA's, or plain."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from matta_jax import config as c
from matta_jax import extract, models, packages, sharding, starts, train
from matta_jax.errors import UserError

WIDER = {"d_ff": 48, "widths": [16, 32, 48]}
NARROW = "d_model=16;d_ff=16"


@pytest.mark.slow
def test_a_grown_run_reports_both_losses_at_step_0(starting, student, tmp_path):
    lines = []
    result = train(starting(student, WIDER), tmp_path / "grown", log=lines.append)
    first = next(line for line in lines if line.startswith("step 0: "))
    values = dict(
        part.rsplit(" ", 1)
        for part in first.removeprefix("step 0: ").replace(" eval/", "\neval/").split("\n")
    )
    assert values["eval/student"] == values["eval/ta"] and float(values["eval/distill"]) == 0
    assert result.step == 3 and any(str(student) in line and "grew a TA" in line for line in lines)


def test_a_model_of_the_tas_sizes_becomes_the_ta(start, starting, outputs, run, tmp_path):
    [ta] = extract(str(run[1]), ["ta"], tmp_path / "ta")
    nest = c.to_dict(run[0])["nest"]
    params, plan = start(starting(ta.path, nest))
    old = packages.load_model(ta.path)
    expected = outputs(old.architecture, old.params)
    np.testing.assert_array_equal(outputs(plan.architecture, params), expected)
    with pytest.raises(
        UserError,
        match="init.sort=True would scatter the sub-models of .* which was trained nested",
    ):
        start(starting(ta.path, nest, init__sort=True))

    packaging = packages.Packaging("hf")
    [exported] = extract(str(run[1]), ["ta"], tmp_path / "hf", packaging=packaging)
    # It does not say what nest it was trained in.
    foreign = starts.import_hf(exported.path, tmp_path / "foreign", tokenizer="byte")
    sorted_params, _ = start(starting(foreign.path, nest, init__sort=True))
    np.testing.assert_allclose(outputs(plan.architecture, sorted_params), expected, atol=2e-5)
    assert not np.array_equal(
        sorted_params["blocks"]["0"]["mlp"]["b_in"], params["blocks"]["0"]["mlp"]["b_in"]
    )


@pytest.mark.slow
def test_a_plain_run_goes_on_from_the_same_step_with_the_same_moments(student, tmp_path):
    config = starts.plain_run(packages.open_model(student))
    lines = []
    result = train(config, tmp_path / "plain", log=lines.append)
    assert result.step == 6 and any(line.startswith("step 4/6") for line in lines)
    assert not any(line.startswith("step 3/6") for line in lines)
    without = dataclasses.replace(config, init=dataclasses.replace(config.init, optimizer=False))
    lines.clear()
    train(without, tmp_path / "fresh", log=lines.append)
    assert any(line.startswith("step 1/6") for line in lines)


@pytest.mark.slow
def test_a_model_whose_heads_do_not_fill_its_width_is_trained_on(run, tmp_path):
    """Three heads of 8 in a residual stream of 16."""
    packaging = packages.Packaging(with_optimizer=True)
    extract(f"{run[1]}@3", [NARROW], tmp_path / "narrow", packaging=packaging)
    config = starts.plain_run(packages.open_model(tmp_path / "narrow"))
    assert (config.model.d_model, config.model.num_heads, config.model.head_dim) == (16, 3, 8)
    lines = []
    result = train(config, tmp_path / "plain", log=lines.append)
    assert result.step == 6 and any(line.startswith("step 4/6") for line in lines)
    assert not any(line.startswith("step 3/6") for line in lines)

    [ta] = extract(str(tmp_path / "plain"), ["ta"], tmp_path / "ta")
    assert packages.open_model(ta.path).architecture.along("heads") == (3, 3, 3)


@pytest.mark.slow
def test_a_resumed_run_does_not_need_its_model_any_more(student, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(student, copy)
    config = starts.plain_run(packages.open_model(copy))
    first = train(config, tmp_path / "plain")
    shutil.rmtree(copy)
    assert train(config, tmp_path / "plain").metrics == first.metrics


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
    starting, student, tmp_path, fields, words
):
    with pytest.raises(UserError, match=words) as error:
        train(starting(student, {"d_ff": 64}, **fields), tmp_path / "w")
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
    for section, changes in fields.items():
        values[section] |= changes
    with pytest.raises(UserError, match=words):
        train(c.from_dict(values), tmp_path / "w")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "kind",
    ["sorted", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("grown", "taken"))],
)
def test_each_device_takes_its_own_part_of_the_same_weights(
    run, student, starting, inputs, tmp_path, kind
):
    nest, sort = c.to_dict(run[0])["nest"], kind == "sorted"
    packaging = packages.Packaging("hf")
    [model] = extract(str(run[1]), ["ta"], tmp_path / "ta", packaging=packaging)
    if sort:
        # It does not say what nest it was trained in.
        model = starts.import_hf(model.path, tmp_path / "foreign", tokenizer="byte")
    path, nest = (student, WIDER) if kind == "grown" else (model.path, nest)
    config = starting(path, nest, init__sort=sort)
    package, plan = starts.check_init(config), models.plan_of(config)

    by_mesh = []
    for shape in ((1, 1, 1), (2, 2, 1)):
        mesh = sharding.make_mesh(shape)
        params, _ = starts.initial_params(config, package, inputs, mesh)
        expected = sharding.param_shardings(plan.abstract, plan.axes, mesh)
        for leaf, to in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
            assert leaf.sharding.is_equivalent_to(to, leaf.ndim)
        by_mesh.append(params)
    jax.tree.map(np.testing.assert_array_equal, *by_mesh)
