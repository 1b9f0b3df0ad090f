"""What follows from a config before an array exists."""

import dataclasses

import jax
import numpy as np

from matta_jax import models, nesting


def test_a_plan_is_made_once(tiny):
    plan = models.plan_of(tiny())
    assert models.plan_of(tiny()) is plan
    assert plan.seq_len == 32 and plan.family.name == "gpt"
    assert plan.architecture == plan.architecture_of(plan.nest.ta)
    assert plan.nest == nesting.nest_of(tiny())


def test_shapes_and_axes_are_those_of_the_ta(nested):
    case = nested("all")
    shape = lambda leaf: (leaf.shape, leaf.dtype)
    assert jax.tree.map(shape, case.plan.abstract) == jax.tree.map(shape, case.params)
    names = nesting.flatten(case.plan.axes)
    for path, leaf in nesting.flatten(case.params).items():
        assert len(names[path]) == leaf.ndim


def test_logits_are_made_with_the_token_table(nested, tiny):
    case = nested("all")
    np.testing.assert_array_equal(case.plan.table(case.params), case.params["embed"]["tokens"])
    scorer = models.plan_of(tiny(model__name="scorer"))
    assert scorer.table({}) is None


def test_after_its_layers_a_model_runs_its_head(nested, tiny):
    plan = nested("all").plan
    assert plan.exit_flops(plan.nest.student) == 2 * 31 * 16
    assert plan.exit_flops(plan.nest.ta) == 2 * 31 * 24
    scorer = models.plan_of(tiny(model__name="scorer", model__num_classes=3))
    assert scorer.exit_flops(scorer.nest.ta) == 2 * 3 * 24


def test_members_own_an_axis_as_long_as_they_are_many(nested):
    plan = nested("all").plan
    assert nesting.MEMBERS not in plan.architecture.fixed
    members = {
        "student": dataclasses.replace(plan.nest.student, member=0),
        "ta": dataclasses.replace(plan.nest.ta, member=1),
    }
    nest = nesting.Nest(members, plan.nest.allowed)
    owning = models.Plan(plan.model, nest, plan.seq_len)
    assert owning.architecture.fixed[nesting.MEMBERS] == 2
    assert nesting.MEMBERS not in owning.architecture_of(nest.student).fixed
