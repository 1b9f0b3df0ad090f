"""A TA grows around a Student; and a large model is sorted, to be one."""

import numpy as np
import pytest

from matta_jax import extract, models, nesting, packages
from matta_jax.starts import _grow

NESTS = {
    "d_ff": {"d_ff": 48, "widths": [16, 32, 48]},
    "heads": {"num_heads": 4},
    "depth": {"num_layers": 4},
    "spread": {"num_layers": 3, "student_layers": "spread"},
    "d_model": {"d_model": 32, "num_heads": 4},
    "all": {"d_model": 32, "num_heads": 4, "d_ff": 32, "num_layers": 3},
}


def merged(params, architecture):
    """The weights by path, without granules."""
    names = nesting.flatten(models.logical_axes(architecture))
    return {
        path: nesting.merge_granules(leaf, names[path])
        for path, leaf in nesting.flatten(params).items()
    }


@pytest.mark.few(3)
@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=pytest.mark.slow) if kind in ("heads", "spread") else kind
        for kind in NESTS
    ],
)
def test_a_grown_ta_computes_the_students_function_and_holds_it_bit_for_bit(
    start, starting, outputs, student, kind
):
    old = packages.load_model(student)
    params, plan = start(starting(student, NESTS[kind]))
    np.testing.assert_allclose(
        outputs(plan.architecture, params), outputs(old.architecture, old.params), atol=2e-5
    )
    student_part = plan.slice(params, plan.nest.student)
    part = merged(student_part, plan.architecture_of(plan.nest.student))
    for path, leaf in merged(old.params, old.architecture).items():
        np.testing.assert_array_equal(part[path], leaf)


@pytest.mark.slow
def test_noisy_growth_keeps_the_student_and_moves_the_ta(start, starting, outputs, student):
    old = packages.load_model(student)
    exact = outputs(old.architecture, old.params)
    distances = []
    for noise in (0.01, 0.1):
        config = starting(student, NESTS["d_ff"], init__growth="noisy", init__growth_noise=noise)
        params, plan = start(config)
        distances.append(np.abs(outputs(plan.architecture, params) - exact).max())
        student_part = plan.slice(params, plan.nest.student)
        np.testing.assert_array_equal(
            student_part["embed"]["tokens"], old.params["embed"]["tokens"]
        )
    assert 1e-5 < distances[0] < distances[1] < 1


def test_sorting_by_importance_keeps_the_function_and_betters_the_prefixes(
    run, outputs, inputs, tmp_path
):
    """A model whose useful neurons stand last: sorted, its Student is better than unsorted."""
    [ta] = extract(str(run[1]), ["ta"], tmp_path / "ta")
    old = packages.load_model(ta.path)
    params = nesting.flatten(old.params)
    for path in ("w_in", "b_in", "w_out"):
        name = f"blocks/0/mlp/{path}"
        params[name] = params[name][:, ::-1]
    params["blocks/0/mlp/w_out"] = params["blocks/0/mlp/w_out"].at[:, 0].multiply(1e-3)
    shuffled_params = nesting.unflatten(params)
    plan = models.plan_of(run[0])
    sorted_params = _grow.sort_by_importance(shuffled_params, plan, inputs)

    expected = outputs(plan.architecture, shuffled_params)
    np.testing.assert_allclose(outputs(plan.architecture, sorted_params), expected, atol=2e-5)
    narrow = plan.nest.ta.resized(d_ff=16)

    def distance(params):
        part = plan.slice(params, narrow)
        return np.abs(outputs(plan.architecture_of(narrow), part) - expected).mean()

    assert distance(sorted_params) < 0.8 * distance(shuffled_params)
