"""FLOPs of a step."""

import types

import pytest

from matta_jax import models
from matta_jax.sharding import make_mesh
from matta_jax.training import make_setup, run_flops_of, step_flops_of, step_flops_per_token

DEEPER = {
    "nest__d_model": None,
    "nest__num_heads": None,
    "nest__d_ff": None,
    "nest__widths": [],
}


def flops(config, names=("student", "ta"), mixes=0, teacher=None):
    plan = models.plan_of(config)
    members = [plan.nest.members[name] for name in names]
    return step_flops_per_token(plan, members, mixes, teacher)


def test_step_flops_share_the_trunk_of_a_prefix_student(tiny):
    config = tiny(**DEEPER)
    plan = models.plan_of(config)
    nest = plan.nest
    joint = step_flops_per_token(plan, [nest.student, nest.ta], 0)
    ta_alone = step_flops_per_token(plan, [nest.ta], 0)
    assert joint == ta_alone + 3 * 2 * config.model.vocab_size * config.model.d_model


def forward_flops(layers, d_model, heads, d_ff, *, head_dim=8, vocab=256, seq_len=32):
    """Of a token in a GPT-2: 2 a weight of matmuls and head, and causal attention at half."""
    weights = layers * (4 * d_model * heads * head_dim + 2 * d_model * d_ff) + vocab * d_model
    return 2 * weights + layers * 2 * heads * head_dim * seq_len


def test_step_flops_are_three_forward_passes_of_all_that_runs(tiny):
    student, ta = forward_flops(2, 16, 2, 16), forward_flops(3, 24, 3, 48)
    assert flops(tiny(), ["student"]) == 3 * student == 49152
    assert flops(tiny(), ["ta"]) == 3 * ta == 133632
    assert flops(tiny()) == 3 * (student + ta) == 182784
    # A mix counts at the mean of 16, 32 and 48; its first attention is the TA's.
    mix = forward_flops(3, 24, 3, 32) - attention_flops(24, 3)
    assert flops(tiny(), mixes=1) == 3 * (student + ta + mix) == 284160
    assert flops(tiny(), mixes=2) == 3 * (student + ta + 2 * mix) == 385536
    # So is the Student's where it differs in d_ff alone.
    narrow = {"nest__d_model": None, "nest__num_heads": None}
    expected = sum(forward_flops(3, 16, 2, d_ff) for d_ff in (48, 32))
    expected += forward_flops(2, 16, 2, 16) - 2 * attention_flops(16, 2)
    assert flops(tiny(**narrow), mixes=1) == 3 * expected
    assert flops(tiny(**DEEPER)) == 86016 and flops(tiny(**DEEPER), ["ta"]) == 61440


def test_a_teacher_that_runs_along_counts_with_one_forward_pass(tiny):
    plan = models.plan_of(tiny())
    architecture = plan.architecture_of(plan.nest.mix([16, 48, 32]))
    teacher = types.SimpleNamespace(architecture=architecture)
    # A mix of the mean width 32 has the FLOPs of that width.
    expected = flops(tiny(), mixes=1) + forward_flops(3, 24, 3, 32)
    assert flops(tiny(), mixes=1, teacher=teacher) == expected == 324096


def test_named_members_count_and_prefixes_of_the_ta_with_their_head_alone(tiny):
    members = {"middle": "layers=2;d_ff=32", "shallow": "layers=1"}
    config = tiny(nest__members=members)
    middle = 3 * (forward_flops(2, 24, 3, 32) - attention_flops(24, 3))
    head = 3 * 2 * 256 * 24
    ends = flops(config)
    assert ends == 182784
    assert flops(config, ["student", "ta", "middle"]) == ends + middle
    assert flops(config, ["student", "ta", "shallow"]) == ends + head
    mixes = flops(config, mixes=1) - ends
    assert step_flops_of(make_setup(config, make_mesh((1, 1, 1)))) == ends + middle + head + mixes


def attention_flops(d_model, heads):
    """Of a layer without its feed-forward part."""
    return layer_flops(d_model, heads, 0)


def layer_flops(d_model, heads, d_ff):
    zero, one = (forward_flops(layers, d_model, heads, d_ff) for layers in (0, 1))
    return one - zero


@pytest.mark.parametrize(
    ("spec", "layers_apart"),
    [
        # The Student by another name, in whole and up to the layer where they part.
        ("layers=2;d_model=16;num_heads=2;d_ff=16", []),
        ("layers=2;d_model=16;num_heads=2;d_ff=16,32", [(16, 2, 32)]),
        ("layers=2;d_model=16;num_heads=2;d_ff=32,16", [(16, 2, 32), (16, 2, 16)]),
        # The TA up to there: hidden states differ after a layer of another width, or one less.
        ("ta", []),
        ("d_ff=48,48,16", [(24, 3, 16)]),
        ("layers=2;d_ff=48,32", [(24, 3, 32)]),
        ("layers=0,2", [(24, 3, 48)]),
        ("layers=only:1", [(24, 3, 48)]),
    ],
)
def test_what_a_member_shares_counts_once(tiny, spec, layers_apart):
    config = tiny(nest__members={"twin": spec})
    d_model = 16 if "d_model=16" in spec else 24
    own = sum(layer_flops(*sizes) for sizes in layers_apart) + 2 * 256 * d_model
    # Where d_ff alone differs in the first layer, its attention is the Student's.
    if spec.endswith("d_ff=32,16"):
        own -= attention_flops(16, 2)
    assert flops(config, ["student", "ta", "twin"]) == flops(config) + 3 * own
    assert flops(config, ["twin", "ta", "student"]) == flops(config) + 3 * own


def test_a_size_that_only_a_member_has_is_one_more_that_mixes_choose_from(tiny):
    config = tiny(nest__members={"odd": "d_ff=40"})
    # 16, 32, 40 and 48.
    mix = forward_flops(3, 24, 3, 34) - attention_flops(24, 3)
    assert flops(config, mixes=1) == pytest.approx(182784 + 3 * mix)


def test_a_member_without_weight_costs_nothing(tiny):
    objective = {"objective__student_weight": 0.0, "objective__distill_weight": 0.0}
    config = tiny(nest__mix_per_step=0, **objective)
    assert step_flops_of(make_setup(config, make_mesh((1, 1, 1)))) == flops(config, ["ta"])


def test_mixes_of_every_third_step_cost_a_third(tiny):
    config = tiny(nest__mix_every=3)
    setup = make_setup(config, make_mesh((1, 1, 1)))
    without, with_mix = flops(config), flops(config, mixes=1)
    assert step_flops_of(setup) == with_mix
    assert run_flops_of(setup) == pytest.approx((2 * without + with_mix) / 3)


def test_mixes_alone_cost_no_member(tiny):
    weights = ("student_weight", "ta_weight", "distill_weight", "mix_distill_weight")
    config = tiny(**{f"objective__{name}": 0.0 for name in weights})
    assert step_flops_of(make_setup(config, make_mesh((1, 1, 1)))) == 3 * forward_flops(
        3, 24, 3, 32
    )
