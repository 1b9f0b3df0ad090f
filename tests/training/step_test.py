"""One step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from matta_jax import models
from matta_jax.sharding import make_mesh
from matta_jax.training import make_eval_step, make_setup, make_train_step, static_members
from matta_jax.training._loss import Draws, Loss
from matta_jax.training._step import (
    _draw_mixes,
    make_train_steps,
    num_mixes,
    trained_members,
)

MIDDLE = {"nest__members": {"middle": "layers=2;d_ff=32"}}
# No random mixes, and distillation from the first step on.
PLAIN = {"nest__mix_per_step": 0, "objective__ramp_shape": "constant"}


def batch_of(seed=0):
    """Four windows, the last of which is half full."""
    tokens = np.random.default_rng(seed).integers(0, 256, (4, 33), np.int32)
    return {"tokens": tokens, "length": np.array([32, 32, 32, 16], np.int32)}


def step_of(config):
    """The weights before and after a step, and its metrics."""
    setup = make_setup(config, make_mesh((1, 1, 1)))
    before = jax.tree.map(np.asarray, setup.init().params)
    state, metrics = make_train_step(setup)(setup.init(), batch_of())
    return before, state.params, jax.device_get(metrics)


def loss_and_gradient(config):
    """The loss of a step on its first weights and its gradient, with the setup."""
    setup = make_setup(config, make_mesh((1, 1, 1)))
    loss = Loss(setup, static_members(setup), mixes=0, is_training=True)
    batch = jax.tree.map(jnp.asarray, batch_of())
    draws = Draws(None, None, jnp.ones(()), jnp.float32(batch["length"].sum()))
    run = jax.jit(jax.value_and_grad(lambda params: loss(params, batch, draws)[0]))
    return setup, *run(setup.init().params)


def losses_by_hand(setup, params, temperature):
    """Cross-entropy of each member, and T² KL from the TA to each, of whole logits."""
    batch = batch_of()
    counted_N = (np.arange(32) < batch["length"][:, None]).reshape(-1)
    labels_N = batch["tokens"][:, 1:].reshape(-1)

    def mean(values_N):
        return jnp.sum(jnp.where(counted_N, values_N, 0.0)) / counted_N.sum()

    def logits_of(sub_model):
        inputs = {"tokens": jnp.asarray(batch["tokens"][:, :-1])}
        hidden = models.sub_model_apply(setup.plan, params, inputs, sub_model)
        return models.logits(hidden, params["embed"]["tokens"])

    q = jax.nn.softmax(jax.lax.stop_gradient(logits_of(setup.nest.ta)) / temperature)
    losses = {}
    for name, sub_model in setup.nest.members.items():
        log_p = jax.nn.log_softmax(logits_of(sub_model))
        losses[name] = mean(-log_p[np.arange(len(labels_N)), labels_N])
        log_p = jax.nn.log_softmax(logits_of(sub_model) / temperature)
        losses[f"{name}_distill"] = temperature**2 * mean((q * (jnp.log(q) - log_p)).sum(-1))
    return losses


def outside_of_middle(tree):
    """A tree like the weights with the part of `middle` set to zero, by indices alone: two of
    three layers and two of three granules of d_ff.
    """
    blocks = tree["blocks"]["0"]
    outside = jax.tree.map(lambda leaf: leaf.at[:2].set(0), blocks)
    for name in ("w_in", "b_in", "w_out"):
        outside["mlp"][name] = blocks["mlp"][name].at[:2, :2].set(0)
    return outside


@pytest.mark.slow
def test_a_skipped_step_leaves_weights_and_optimiser_as_they_were(tiny, assert_same_bits):
    setup = make_setup(tiny(), make_mesh((1, 1, 1)))
    step = make_train_step(setup)
    batch = {"tokens": np.full((4, 33), 5, np.int32), "length": np.full(4, 32, np.int32)}
    state, metrics = step(setup.init(), batch)
    assert not metrics["skipped"]
    before = jax.tree.map(np.asarray, state)
    state, metrics = step(state, batch | {"tokens": batch["tokens"] + 10**6})
    assert metrics["skipped"] and not np.isfinite(metrics["loss"])
    assert_same_bits((state.params, state.opt_state), (before.params, before.opt_state))
    assert state.step == before.step + 1


@pytest.mark.slow
def test_the_gradient_of_a_step_with_a_member_is_that_of_its_terms_by_hand(tiny):
    weights = {
        "objective__temperature": 2.0,
        "objective__student_weight": 0.7,
        "objective__member_weights": {"middle": 0.3},
        "objective__member_distill_weights": {"middle": 0.9},
    }
    setup, loss, gradient = loss_and_gradient(tiny(**MIDDLE, **PLAIN, **weights))

    def by_hand(params):
        terms = losses_by_hand(setup, params, temperature=2.0)
        value = 0.7 * terms["student"] + terms["ta"] + 0.5 * terms["student_distill"]
        return value + 0.3 * terms["middle"] + 0.9 * terms["middle_distill"]

    expected, expected_gradient = jax.jit(jax.value_and_grad(by_hand))(setup.init().params)
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True)
    for leaf, expected_leaf in pairs:
        np.testing.assert_allclose(leaf, expected_leaf, atol=2e-6)


@pytest.mark.slow
def test_distillation_of_a_member_sends_no_gradient_outside_of_it(tiny):
    distillation = {
        "objective__student_weight": 0.0,
        "objective__ta_weight": 0.0,
        "objective__distill_weight": 0.0,
        "objective__member_weights": {"middle": 0.0},
    }
    _, loss, gradient = loss_and_gradient(tiny(**MIDDLE, **PLAIN, **distillation))
    assert loss > 0
    outside = outside_of_middle(gradient)
    assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(outside))
    inside = gradient["blocks"]["0"]["mlp"]["w_in"][:2, :2]
    assert np.abs(inside).sum() > 1e-3
    # The check can fail: the TA's own loss reaches what is outside.
    _, _, gradient = loss_and_gradient(tiny(**MIDDLE, **PLAIN))
    assert all(
        np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(outside_of_middle(gradient))
    )


@pytest.mark.slow
def test_metrics_of_a_member_are_its_terms(tiny):
    config = tiny(**MIDDLE, **PLAIN)
    before, _, metrics = step_of(config)
    setup = make_setup(config, make_mesh((1, 1, 1)))
    terms = jax.device_get(losses_by_hand(setup, before, temperature=1.0))
    assert metrics["members/middle"] == pytest.approx(terms["middle"], rel=1e-5)
    assert metrics["members/middle_distill"] == pytest.approx(terms["middle_distill"], rel=1e-4)
    total = metrics["student"] + metrics["ta"] + 0.5 * metrics["distill"]
    total += 0.5 * metrics["members/middle"] + 0.5 * metrics["members/middle_distill"]
    assert metrics["loss"] == pytest.approx(total, rel=1e-6)

    sums = jax.device_get(make_eval_step(setup)(before, batch_of()))
    assert sums["members/middle"] / sums["targets"] == pytest.approx(terms["middle"], rel=1e-5)


@pytest.mark.slow
def test_a_member_of_no_weight_trains_nothing(tiny):
    off = {
        "objective__member_weights": {"middle": 0.0},
        "objective__member_distill_weights": {"middle": 0.0},
    }
    _, params, metrics = step_of(tiny(**MIDDLE, **PLAIN, **off))
    _, params_without, metrics_without = step_of(tiny(**PLAIN))
    assert set(metrics) == set(metrics_without)
    for name in metrics_without:
        assert metrics[name] == pytest.approx(metrics_without[name], rel=1e-6), name
    for leaf, expected in zip(
        jax.tree.leaves(params), jax.tree.leaves(params_without), strict=True
    ):
        np.testing.assert_allclose(leaf, expected, atol=1e-6)


@pytest.mark.slow
def test_a_member_of_the_students_sizes_shares_its_states_and_changes_none_of_its_metrics(tiny):
    _, _, metrics = step_of(tiny(nest__members={"twin": "student"}, **PLAIN))
    _, _, metrics_without = step_of(tiny(**PLAIN))
    assert metrics["members/twin"] == metrics["student"]
    assert metrics["members/twin_distill"] == metrics["distill"]
    for name in ("student", "ta", "distill", "gap", "agreement", "distill_scale"):
        assert metrics[name] == metrics_without[name], name
    added = 0.5 * metrics["members/twin"] + 0.5 * metrics["members/twin_distill"]
    assert metrics["loss"] == pytest.approx(metrics_without["loss"] + added, rel=1e-6)


@pytest.mark.slow
def test_a_run_begins_with_its_ta_alone(tiny):
    """Its first steps are those of a run in which nothing but the TA's loss counts."""
    config = tiny(**MIDDLE, objective__members_start=0.5, train__num_steps=20)
    setup = make_setup(config, make_mesh((1, 1, 1)))
    step_at = make_train_steps(setup)
    assert step_at(0) is step_at(9) is not step_at(10) is step_at(19)

    state, metrics = step_at(0)(setup.init(), batch_of())
    assert "ta" in metrics and not {"student", "gap", "agreement", "mix_0"} & set(metrics)
    weights = {name: {"middle": 0.0} for name in ("member_weights", "member_distill_weights")}
    names = ("student_weight", "distill_weight", "mix_weight", "mix_distill_weight")
    zeros = {f"objective__{name}": weight for name, weight in weights.items()}
    zeros |= {f"objective__{name}": 0.0 for name in names}
    _, expected, _ = step_of(tiny(**MIDDLE, **zeros, train__num_steps=20))
    for leaf, other in zip(jax.tree.leaves(state.params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(leaf, other, atol=2e-6)


@pytest.mark.slow
def test_distillation_rises_from_where_members_join(tiny):
    config = tiny(objective__members_start=0.5, train__num_steps=20)
    setup = make_setup(config, make_mesh((1, 1, 1)))
    step_at, state = make_train_steps(setup), setup.init()
    scales = []
    for step in (9, 10, 11):
        state = dataclasses.replace(state, step=jnp.int32(step))
        state, metrics = step_at(step)(state, batch_of())
        scales.append(float(metrics["distill_scale"]))
    assert scales[:2] == [0, 0] and scales[2] > 0


def test_a_mix_of_whole_models_has_one_size_throughout(tiny):
    for by, counts in (("layer", {1, 2, 3}), ("model", {1})):
        setup = make_setup(tiny(nest__mix_by=by), make_mesh((1, 1, 1)))
        draws = [np.asarray(_draw_mixes(setup, 2, jax.random.key(i))) for i in range(20)]
        assert {len(set(row.tolist())) for draw in draws for row in draw} <= counts
        assert {row[0] for draw in draws for row in draw} == set(
            range(len(setup.nest.layer_options))
        )
        assert len({draw.tobytes() for draw in draws}) > 5


@pytest.mark.parametrize(
    ("weights", "trained"),
    [
        ({}, {"student", "ta", "members/middle"}),
        pytest.param(
            {"student_weight": 0.0, "distill_weight": 0.0},
            {"ta", "members/middle"},
            marks=pytest.mark.slow,
        ),
        # A member that learns from the TA needs it.
        pytest.param(
            {"student_weight": 0.0, "ta_weight": 0.0},
            {"student", "ta", "members/middle"},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"distill_weight": 0.0, "ta_weight": 0.0, "member_distill_weights": {"middle": 0.0}},
            {"student", "members/middle"},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"member_weights": {"middle": 0.0}, "member_distill_weights": {"middle": 0.0}},
            {"student", "ta"},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_step_runs_what_it_trains_and_what_that_learns_from(tiny, weights, trained):
    fields = {f"objective__{name}": value for name, value in weights.items()}
    config = tiny(**MIDDLE, **PLAIN, **fields)
    assert set(trained_members(make_setup(config, make_mesh((1, 1, 1))))) == trained
    _, _, metrics = step_of(config)
    streams = {"student", "ta", "members/middle"}
    assert set(metrics) & streams == trained
    assert ("agreement" in metrics) == ({"student", "ta"} <= trained)
    assert ("gap" in metrics) == ({"student", "ta"} <= trained)


@pytest.mark.slow
def test_without_any_other_weight_a_step_is_that_of_the_ta_alone(tiny):
    others = {"student_weight": 0.0, "distill_weight": 0.0}
    config = tiny(**PLAIN, **{f"objective__{name}": value for name, value in others.items()})
    _, params, _ = step_of(config)
    setup = make_setup(config, make_mesh((1, 1, 1)))
    expected, _ = make_train_step(setup, ta_alone=True)(setup.init(), batch_of())
    jax.tree.map(np.testing.assert_array_equal, params, expected.params)


@pytest.mark.slow
def test_a_step_may_run_random_mixes_alone(tiny):
    """As in MatFormer's recipe of one size a step."""
    weights = ("student_weight", "ta_weight", "distill_weight", "mix_distill_weight")
    config = tiny(**{f"objective__{name}": 0.0 for name in weights})
    _, _, metrics = step_of(config)
    assert "mix_0" in metrics and not {"student", "ta", "agreement", "gap"} & set(metrics)
    assert metrics["loss"] == pytest.approx(0.5 * metrics["mix_0"])
    assert metrics["grad_norm"] > 0


def test_random_mixes_without_weight_are_not_drawn(tiny):
    config = tiny(objective__mix_weight=0.0, objective__mix_distill_weight=0.0)
    assert num_mixes(make_setup(config, make_mesh((1, 1, 1)))) == 0
    assert num_mixes(make_setup(tiny(objective__mix_weight=0.0), make_mesh((1, 1, 1)))) == 1


@pytest.mark.slow
def test_mixes_may_train_in_some_steps_alone(tiny):
    setup = make_setup(tiny(nest__mix_every=3), make_mesh((1, 1, 1)))
    step_at = make_train_steps(setup)
    with_mixes = [step for step in range(9) if step_at(step) is step_at(2)]
    assert with_mixes == [2, 5, 8] and step_at(0) is step_at(1)
    assert "mix_0" in step_at(2)(setup.init(), batch_of())[1]
    state, metrics = step_at(0)(setup.init(), batch_of())
    assert "mix_0" not in metrics and "gap" in metrics
    _, expected, _ = step_of(tiny(nest__mix_per_step=0))
    jax.tree.map(np.testing.assert_array_equal, state.params, expected)

    plain = make_train_steps(make_setup(tiny(), make_mesh((1, 1, 1))))
    assert plain(0) is plain(1)
