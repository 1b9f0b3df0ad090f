"""Losses of pairs: against their formulas by numpy, and refused where they fit nothing."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from matta_jax import distill
from matta_jax.config import ObjectiveConfig
from matta_jax.errors import UserError

B = 5
STREAMS = ("student", "ta")
LOGITS = [jax.random.normal(jax.random.key(i), (B, B)) for i in range(2)]
SCORES = jnp.array([3.0, 1.0, 1.0, 5.0, 0.0])


def value_of(pair_loss, logits, labels, weights, **fields):
    config = ObjectiveConfig(pair_loss=pair_loss, **fields)
    objective = distill.make_objective(config, STREAMS, kind=distill.PAIR_LOSSES[pair_loss])
    return objective(logits, None, labels, weights, ramp=jnp.ones(()), total=jnp.sum(jnp.ones(B)))


def by_pairs(similarity, scores):
    """log(1 + sum of exp(s_j - s_i) over score_i > score_j)."""
    total = 1.0
    for i, j in itertools.permutations(range(len(scores)), 2):
        if scores[i] > scores[j]:
            total += np.exp(similarity[j] - similarity[i])
    return np.log(total)


@pytest.mark.parametrize("counted", [B, 3])
def test_cosent_is_its_formula_over_the_pairs_that_count(counted):
    weights = (jnp.arange(B) < counted).astype(jnp.float32)
    loss, metrics = value_of("cosent", LOGITS, SCORES, weights, distill_weight=0.0)
    expected = [
        by_pairs(np.diag(z)[:counted], SCORES[:counted].tolist()) * counted / B for z in LOGITS
    ]
    np.testing.assert_allclose([metrics["student"], metrics["ta"]], expected, rtol=1e-5)
    assert float(loss) == pytest.approx(sum(expected), rel=1e-5)


@pytest.mark.slow
def test_cosent_distils_by_rows_and_leaves_the_ta_alone():
    def loss(student, ta):
        weights = {"student_weight": 0.0, "ta_weight": 0.0, "distill_weight": 1.0}
        return value_of("cosent", [student, ta], SCORES, jnp.ones(B), **weights)[0]

    q, p = jax.nn.softmax(LOGITS[1]), jax.nn.softmax(LOGITS[0])
    expected = jnp.sum(q * (jnp.log(q) - jnp.log(p))) / B
    assert float(loss(*LOGITS)) == pytest.approx(float(expected), rel=1e-5)
    student_gradient, ta_gradient = jax.grad(loss, argnums=(0, 1))(*LOGITS)
    assert float(jnp.abs(student_gradient).max()) > 0 and not jnp.any(ta_gradient)


def test_scores_that_are_all_alike_teach_nothing():
    loss = lambda z: value_of("cosent", [z, z], jnp.ones(B), jnp.ones(B), distill_weight=0.0)[0]
    value, gradient = jax.value_and_grad(loss)(LOGITS[0])
    assert value == 0 and not jnp.any(gradient)


@pytest.mark.slow
def test_both_directions_are_the_mean_of_rows_and_columns():
    labels = jnp.arange(B)
    _, both = value_of("in_batch_both", LOGITS, labels, jnp.ones(B))
    _, rows = value_of("in_batch", LOGITS, labels, jnp.ones(B))
    _, columns = value_of("in_batch", [z.T for z in LOGITS], labels, jnp.ones(B))
    for name in ("student", "ta", "distill"):
        assert float(both[name]) == pytest.approx(float(rows[name] + columns[name]) / 2, rel=1e-5)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"objective__pair_loss": "cosent"}, "data.score_field=None; name the field"),
        (
            {
                "objective__pair_loss": "cosent",
                "data__score_field": "score",
                "teacher__task_labels": "teacher",
                "teacher__model": "/m",
            },
            "learns scores; leave one out",
        ),
    ],
)
def test_cosent_needs_scores(embedder, fields, words):
    with pytest.raises(UserError, match=words):
        embedder(**fields)


@pytest.mark.parametrize(
    "fields", [{"objective__pair_loss": "cosent"}, {"data__score_field": "score"}]
)
def test_losses_of_pairs_are_refused_without_pairs(tiny, fields):
    with pytest.raises(UserError, match="without effect on model.name='gpt'"):
        tiny(**fields)
