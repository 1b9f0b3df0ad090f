"""Candidates from the losses of a few models."""

import sys

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from matta_jax import nesting, search
from matta_jax.errors import UserError
from matta_jax.selection import Budget, _predict, _space


@hypothesis.given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.floats(0.05, 1.0))
def test_the_solver_finds_the_exact_best_of_any_additive_loss_within_any_budget(
    seed, depth, tightness
):
    rng = np.random.default_rng(seed)
    nest = nesting.expand(
        num_layers=depth, d_model=8, num_heads=2, d_ff=8, ta_d_ff=24, widths=(8, 16, 24)
    )
    space = _space.make_space(nest)
    added = rng.normal(size=(depth, 3)) * [1, 1, 0]
    prices = [
        _space.Cost(int(rng.integers(1, 10**8)), 0.0, int(rng.integers(1, 10**11)))
        for _ in nest.layer_options
    ]
    base = _space.Cost(int(rng.integers(1, 10**8)), 0.0, 0)

    def choices(sub_model):
        return [nest.option_of(sub_model, layer) for layer in sub_model.layers]

    def loss(sub_model):
        return 3.0 + sum(added[layer, i] for layer, i in enumerate(choices(sub_model)))

    def parameters(sub_model):
        return base.max_params + sum(prices[i].max_params for i in choices(sub_model))

    def flops(sub_model):
        return sum(prices[i].max_flops_per_token for i in choices(sub_model))

    members = list(space.members())

    def limit(cost):
        costs = list(map(cost, members))
        return min(costs) + tightness * (max(costs) - min(costs)) + 1

    budget = Budget(max_params=limit(parameters), max_flops_per_token=limit(flops))
    fitting = [
        member
        for member in members
        if parameters(member) <= budget.max_params and flops(member) <= budget.max_flops_per_token
    ]
    candidates = _predict.additive_candidates(
        space, loss, lambda _: (base, prices), budget, count=3
    )
    assert all(candidate in fitting for _, candidate in candidates)
    losses = [loss(candidate) for _, candidate in candidates]
    np.testing.assert_allclose(losses, sorted(map(loss, fitting))[:3], atol=1e-5)
    np.testing.assert_allclose([predicted for predicted, _ in candidates], losses, atol=1e-9)


def test_evolution_without_its_library_names_the_extra(run, output, monkeypatch, one_family):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"pip install 'matta_jax\[search\]'"):
        search(str(run[1]), output, method="evolutionary", **one_family)
