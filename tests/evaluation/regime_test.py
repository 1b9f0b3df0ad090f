import pytest

from matta_jax.evaluation._regime import regime_remarks, tokens_per_parameter
from matta_jax.models import plan_of


def test_tokens_are_told_for_each_parameter_of_a_member(tiny):
    config = tiny()
    plan = plan_of(config)
    for sub_model in plan.nest.members.values():
        parameters = plan.count(sub_model).parameters
        # Four windows of 32 tokens a step.
        assert tokens_per_parameter(config, sub_model, 10) == pytest.approx(1280 / parameters)


def test_a_run_that_has_read_little_is_told(tiny):
    config = tiny()
    parameters = plan_of(config).count(plan_of(config).nest.ta).parameters
    few, many = parameters * 3 // 128, parameters * 5 // 128
    (line,) = regime_remarks(config, few)
    assert line.startswith("The run has read 3 tokens for each parameter of the TA")
    assert not regime_remarks(config, many)
    # Neither is a run without steps, nor one without sizes to compare.
    assert not regime_remarks(config, 0)
    lone = {f"nest__{name}": None for name in ("num_layers", "d_model", "num_heads", "d_ff")}
    assert not regime_remarks(tiny(**lone, nest__widths=()), few)
