import dataclasses

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from matta_jax import distill, models, nesting
from matta_jax.config import ModelConfig, ObjectiveConfig

V = 7
NEST = nesting.expand(
    num_layers=2,
    d_model=16,
    num_heads=2,
    d_ff=16,
    ta_num_layers=3,
    ta_d_model=24,
    ta_num_heads=3,
    ta_d_ff=48,
)
CONFIG = ModelConfig(vocab_size=V, num_layers=2, d_model=16, num_heads=2, d_ff=16, max_len=8)
PLAN = models.Plan(CONFIG, NEST, seq_len=8)
AXES = PLAN.axes
PARAMS = jax.jit(lambda: models.init_params(PLAN.architecture, jax.random.key(0), NEST))()
STREAMS = ("student", "ta", "mix_0")


def numpy_softmax(z):
    e = np.exp(np.float64(z) - np.max(z, -1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@hypothesis.given(
    st.floats(0.01, 1.0), st.integers(10, 1000), st.sampled_from(["linear", "cosine"])
)
def test_ramps_rise_from_zero_to_one(fraction, num_steps, shape):
    steps = np.linspace(0, num_steps, 33, dtype=np.float32)
    values = distill.ramp(steps, num_steps=num_steps, fraction=fraction, shape=shape)
    assert values[0] == 0 and values[-1] == pytest.approx(1) and np.all(np.diff(values) >= -1e-6)
    middle = distill.ramp(
        jnp.float32(fraction * num_steps / 2), num_steps=num_steps, fraction=fraction, shape=shape
    )
    assert float(middle) == pytest.approx(0.5, abs=1e-3)


def test_a_constant_ramp_and_one_of_no_length_are_one_from_the_start():
    assert distill.ramp(0, num_steps=9, fraction=0.5, shape="constant") == 1
    assert distill.ramp(0, num_steps=9, fraction=0.0, shape="linear") == 1


def joint_loss(objective, params, weights=None, ramp=1.0):
    tokens = jax.random.randint(jax.random.key(0), (2, 9), 0, V)
    mix_L = jnp.array([1, 0, 1])
    inputs = {"tokens": tokens[:, :-1]}
    hidden = models.joint_apply(PLAN, params, inputs, [NEST.student, NEST.ta, mix_L])
    weights = jnp.ones(16) if weights is None else weights
    return objective(
        hidden,
        params["embed"]["tokens"],
        tokens[:, 1:].reshape(-1),
        weights,
        ramp=jnp.float32(ramp),
        total=weights.sum(),
    )


def only_distillation(**fields):
    """The objective of a run, with no weight but distillation's."""
    off = {"student_weight": 0.0, "ta_weight": 0.0, "mix_weight": 0.0, "mix_distill_weight": 0.0}
    return distill.make_objective(ObjectiveConfig(distill_weight=1.0, **off, **fields), STREAMS)


_SLOW_KINDS = [
    pytest.param(kind, marks=pytest.mark.slow) for kind in ("reverse_kl", "jensen_shannon")
]


@pytest.mark.parametrize("kind", ["forward_kl", *_SLOW_KINDS])
def test_distillation_sends_no_gradient_into_ta_only_parameters(kind):
    objective = only_distillation(divergence=kind, temperature=2.0)
    full = distill.make_objective(ObjectiveConfig(), STREAMS)
    # In a single program, which computes what they have in common once.
    gradient, full_gradient = jax.jit(
        lambda params: [
            jax.grad(lambda p, each=each: joint_loss(each, p)[0])(params)
            for each in (objective, full)
        ]
    )(PARAMS)
    shared = jax.jit(lambda tree: nesting.slice_model(tree, AXES, NEST.student))(gradient)
    magnitude = lambda tree: sum(float(np.abs(leaf).sum()) for leaf in jax.tree.leaves(tree))
    assert magnitude(shared) > 1e-3
    # Everything outside the Student's slice is exactly zero: cut the slice out, and nothing is
    # left.
    zeroed = zero_slice(gradient)
    assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(zeroed))
    # The check can fail: with the TA's own loss the same parts have gradient.
    assert magnitude(zero_slice(full_gradient)) > 1e-3


def zero_slice(gradient):
    """The gradient with the Student's part set to zero, by a mask made without the
    code under test.
    """
    student, ta = NEST.student, NEST.ta
    keep = {
        "layers": student.num_layers / ta.num_layers,
        "d_model": student.sizes["d_model"] / ta.sizes["d_model"],
        "heads_granules": student.sizes["heads"] / ta.sizes["heads"],
        "d_ff_granules": student.sizes["d_ff"] / ta.sizes["d_ff"],
    }

    def cut(leaf, names):
        index = tuple(
            slice(0, round(keep.get(name, 1) * size))
            for name, size in zip(names, leaf.shape, strict=True)
        )
        zeroed = np.array(leaf)
        zeroed[index] = 0
        return zeroed

    return jax.tree.map(cut, gradient, AXES)


@pytest.mark.slow
def test_the_distillation_gradient_on_shared_parameters_ignores_the_ta_path():
    """The same gradient as with the TA's logits computed beforehand and passed in as constants."""
    objective = only_distillation()
    gradient = jax.jit(jax.grad(lambda p: joint_loss(objective, p)[0]))(PARAMS)
    tokens = jax.random.randint(jax.random.key(0), (2, 9), 0, V)[:, :-1]
    run = lambda p, sub_model: models.logits(
        models.sub_model_apply(PLAN, p, {"tokens": tokens}, sub_model), PLAN.table(p)
    )
    constant = np.asarray(jax.jit(lambda p: run(p, NEST.ta))(PARAMS))

    def reference(p):
        log_q = jax.nn.log_softmax(run(p, NEST.student))
        return -(numpy_softmax(constant) * log_q).sum(-1).mean()

    expected = jax.jit(jax.grad(reference))(PARAMS)
    for ours, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_the_loss_is_the_weighted_sum_of_its_terms():
    config = ObjectiveConfig(
        student_weight=0.7,
        ta_weight=1.3,
        distill_weight=0.4,
        mix_weight=0.2,
        mix_distill_weight=0.1,
    )
    objective = distill.make_objective(config, STREAMS)
    loss, m = jax.jit(lambda p: joint_loss(objective, p, ramp=0.25))(PARAMS)
    expected = 0.7 * m["student"] + 1.3 * m["ta"] + 0.25 * 0.4 * m["distill"]
    expected += 0.2 * m["mix_0"] + 0.25 * 0.1 * m["mix_0_distill"]
    assert float(loss) == pytest.approx(float(expected), rel=1e-6) and float(m["distill"]) > 0
    assert 0 <= float(m["agreement"]) <= 1


def test_masked_tokens_count_for_nothing():
    objective = distill.make_objective(ObjectiveConfig(), STREAMS)
    half = jnp.array([1.0] * 8 + [0.0] * 8)
    metrics = jax.jit(lambda weights: joint_loss(objective, PARAMS, weights)[1])
    first, second, both = metrics(half), metrics(1 - half), metrics(jnp.ones(16))
    for name in both:
        assert float(both[name]) == pytest.approx(
            (float(first[name]) + float(second[name])) / 2, rel=1e-5
        )


def test_terms_of_no_weight_are_left_out_and_a_trivial_nest_has_one():
    config = dataclasses.replace(ObjectiveConfig(), distill_weight=0.0, mix_weight=0.0)
    streams = ("student", "ta", "mix_0", "mix_1")
    assert names_of(config, streams) == ["student", "ta", "mix_0_distill", "mix_1_distill"]
    assert names_of(config, ("student",)) == ["student"]


def names_of(config, streams):
    return [term.name for term in distill.make_objective(config, streams).plan.terms]


def test_a_named_member_has_a_cross_entropy_and_a_distillation():
    streams = ("student", "ta", "members/small", "members/middle", "mix_0")
    config = ObjectiveConfig(
        member_weights={"middle": 0.0, "small": 0.25},
        member_distill_weights={"small": 0.0, "middle": 0.75},
        temperature=2.0,
    )
    plan = distill.make_objective(config, streams).plan
    terms = {term.name: (term.stream, term.weight, term.target) for term in plan.terms}
    # A cross-entropy of weight 0 is logged; a distillation is left out.
    assert terms == {
        "student": (0, 1.0, "labels"),
        "ta": (1, 1.0, "labels"),
        "distill": (0, 0.5, "ta"),
        "members/small": (2, 0.25, "labels"),
        "members/middle": (3, 0.0, "labels"),
        "members/middle_distill": (3, 0.75, "ta"),
        "mix_0": (4, 0.5, "labels"),
        "mix_0_distill": (4, 0.5, "ta"),
    }
    assert plan.student == 0 and plan.ta == 1
    assert all(term.temperature == 2.0 for term in plan.terms if term.target == "ta")


def test_a_member_whose_weights_are_not_named_has_a_half_of_each():
    plan = distill.make_objective(ObjectiveConfig(), ("student", "ta", "members/small")).plan
    weights = {term.name: term.weight for term in plan.terms}
    assert weights["members/small"] == weights["members/small_distill"] == 0.5
    assert distill.member_stream("small") == "members/small" and distill.mix_stream(3) == "mix_3"
