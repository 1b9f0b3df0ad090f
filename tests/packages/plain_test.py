"""The config of a plain run says what a model is, where a config can."""

import pytest

from matta_jax import checkpoints, extract, models, nesting, packages
from matta_jax.errors import UserError


@pytest.mark.parametrize("spec", ["d_ff=48,16,48", "num_heads=3,2,3"])
def test_optimiser_states_that_cannot_go_along_are_refused(run, tmp_path, spec):
    packaging = packages.Packaging(with_optimizer=True)
    words = f"{spec}: a model of mixed widths cannot be trained on"
    with pytest.raises(UserError, match=words):
        extract(str(run[1]), [spec], tmp_path / "a", packaging=packaging)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("spec", "sizes"),
    [
        ("student", (2, 16, 2, 16, None)),
        ("ta", (3, 24, 3, 48, None)),
        ("layers=0,2;d_ff=32", (2, 24, 3, 32, None)),
        ("num_heads=2", (3, 24, 2, 48, 8)),
        ("d_model=16;d_ff=16", (3, 16, 3, 16, 8)),
    ],
)
def test_a_plain_config_describes_the_model(run, spec, sizes):
    """Layers, d_model, heads, d_ff, and the width of a head where it does not follow from them."""
    source = checkpoints.open_source(str(run[1]))
    sub_model = nesting.parse_spec(spec, source.nest)
    config = packages.plain_config(source.config, source.architecture_of(sub_model))
    model = config.model
    assert sizes == (model.num_layers, model.d_model, model.num_heads, model.d_ff, model.head_dim)

    plan = models.plan_of(config)
    assert plan.nest.student == plan.nest.ta
    assert plan.count(plan.nest.ta) == source.count(sub_model)


def test_a_plain_config_has_no_weights_of_what_is_no_more(tiny):
    config = tiny(
        nest__members={"middle": "d_ff=32"},
        objective__member_weights={"middle": 1.0},
        objective__member_distill_weights={"middle": 0.0},
        objective__student_weight=0.0,
    )
    plan = models.plan_of(config)
    for sub_model in plan.nest.members.values():
        plain = packages.plain_config(config, plan.architecture_of(sub_model))
        assert not plain.objective.member_weights and plain.objective.student_weight == 1.0
