"""The terms of the loss, against their definition in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from matta_jax.distill import SoftLabels, TopKTeacher, nested_loss

N, V = 37, 51  # Of the cases in conftest.py.


WIDTHS = [(12,), (12, 12), (8, 12), (12, 12, 12), (6, 12, 12), (4, 8, 8, 12)]


@pytest.mark.few(6)
@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_value_and_gradients_are_those_of_the_naive_form_in_float64(
    make_case, make_plan, assert_close, widths, temperature
):
    case, plan = make_case(widths), make_plan(len(widths), temperature=temperature)
    loss, d_hidden, d_table, losses = case.value_and_gradients(plan)
    value, *gradients = case.expected(plan)
    assert loss == pytest.approx(value, rel=5e-6)
    assert_close((d_hidden, d_table), gradients)
    assert float(losses.loss) == pytest.approx(
        float(losses.sums @ case.term_weights[: len(plan.terms)] / losses.count), rel=1e-6
    )
    assert float(losses.count) == pytest.approx(float(case.weights.sum()))


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("divergence", ["reverse_kl", "jensen_shannon"])
def test_all_divergences_are_those_of_the_naive_form(
    make_case, make_plan, assert_close, divergence, temperature
):
    case = make_case((8, 12, 12))
    plan = make_plan(3, temperature=temperature, divergence=divergence, beta=0.3)
    loss, *gradients, _ = case.value_and_gradients(plan)
    value, *expected = case.expected(plan)
    assert loss == pytest.approx(value, rel=5e-6)
    assert_close(gradients, expected)


@pytest.mark.parametrize("widths", [(8, 12), (12, 12)], ids=str)
def test_bf16_hidden_states_are_summed_in_float32(make_case, make_plan, assert_close, widths):
    """The value is exact for the rounded operands; gradients pass through a bf16 dz and, for hidden
    states, result.
    """
    case, plan = make_case(widths), make_plan(2, temperature=2.0)
    loss, d_hidden, d_table, _ = case.value_and_gradients(plan, dtype=jnp.bfloat16)
    value, *expected = case.expected(plan, dtype=jnp.bfloat16)
    assert loss == pytest.approx(value, rel=5e-6)
    assert d_hidden[0].dtype == jnp.bfloat16 and d_table.dtype == jnp.float32
    assert_close((d_hidden, d_table), expected, rtol=1e-2)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jensen_shannon"])
def test_a_student_that_is_the_ta_has_no_divergence_no_gradient_and_full_agreement(
    make_case, make_plan, divergence
):
    case = make_case((12, 12))
    case.hidden[0] = case.hidden[1]
    case.term_weights[:] = [0, 0, 1, *[0] * 13]
    plan = make_plan(2, temperature=2.0, divergence=divergence)
    loss, d_hidden, d_table, losses = case.value_and_gradients(plan)
    assert loss == pytest.approx(0, abs=1e-7)
    for gradient in (*d_hidden, d_table):
        np.testing.assert_allclose(gradient, 0, atol=1e-8)
    assert float(losses.agreement) == pytest.approx(float(losses.count))


def test_agreement_counts_equal_argmaxes(make_case, make_plan):
    case = make_case((8, 12))
    case.hidden[1][:, :8] = 2 * case.hidden[0]
    losses = case.losses(
        make_plan(2), [jnp.float32(h) for h in case.hidden], jnp.float32(case.table)
    )
    tops = [np.argmax(h @ case.table[:, : h.shape[1]].T, -1) for h in case.hidden]
    assert 0 < float(losses.agreement) < float(losses.count)
    assert float(losses.agreement) == pytest.approx(
        float(((tops[0] == tops[1]) * case.weights).sum()), rel=1e-6
    )


def test_distillation_reaches_neither_the_ta_nor_its_own_columns(make_case, make_plan):
    case = make_case((8, 12))
    case.term_weights[:] = [0, 0, 1, *[0] * 13]
    _, d_hidden, d_table, _ = case.value_and_gradients(make_plan(2))
    assert np.all(np.asarray(d_hidden[1]) == 0) and np.all(np.asarray(d_table[:, 8:]) == 0)
    assert np.abs(d_hidden[0]).max() > 1e-4 and np.abs(d_table[:, :8]).max() > 1e-4


@pytest.mark.few(2)
@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("k", [1, 5, V])
def test_cached_top_k_labels_are_those_of_the_naive_form(
    make_case, make_plan, top_k_teacher, assert_close, k, temperature
):
    case, teacher = make_case((8, 12)), top_k_teacher(k, temperature)
    plan = make_plan(2, temperature=temperature, teacher=teacher)
    loss, *gradients, _ = case.value_and_gradients(plan, teacher)
    value, *expected = case.expected(plan, teacher)
    assert loss == pytest.approx(value, rel=5e-6)
    assert_close(gradients, expected)


def test_a_tail_of_hardly_any_mass_keeps_its_digits(make_case, make_plan, assert_close):
    """1 - (sum of the top k) would be 0 or noise here."""
    case = make_case((12,))
    case.hidden[0] *= 12
    z = case.hidden[0] @ case.table.T
    ids = np.argsort(-z, -1)[:, :3]
    teacher = TopKTeacher(
        jnp.asarray(ids), jnp.full((N, 3), np.log(0.3), jnp.float32), jnp.full(N, np.log(0.1))
    )
    plan = make_plan(1, teacher=teacher)
    p = np.exp(z - z.max(-1, keepdims=True))
    assert np.median(1 - np.take_along_axis(p / p.sum(-1, keepdims=True), ids, -1).sum(-1)) < 1e-6
    loss, *gradients, _ = case.value_and_gradients(plan, teacher)
    value, *expected = case.expected(plan, teacher)
    assert loss == pytest.approx(value, rel=5e-6)
    assert_close(gradients, expected, rtol=2e-5)


def test_all_ids_cached_equal_the_online_teacher(
    make_case, make_plan, online_teacher, assert_close
):
    case, online = make_case((8, 12)), online_teacher()
    log_p = jax.nn.log_softmax(online.hidden @ online.head.T / 2.0)
    cached = TopKTeacher(
        jnp.tile(jnp.arange(V), (N, 1)), log_p, jnp.full(N, -jnp.inf), temperature=2.0
    )
    plan = make_plan(2, temperature=2.0, teacher=online)
    loss, *gradients, _ = case.value_and_gradients(plan, online)
    other, *others, _ = case.value_and_gradients(plan, cached)
    value, *expected = case.expected(plan, online)
    assert loss == pytest.approx(other, rel=1e-6) and loss == pytest.approx(value, rel=5e-6)
    assert_close(gradients, others, rtol=2e-6)
    assert_close(gradients, expected)


def test_an_online_teacher_gets_no_gradient(make_case, make_plan, online_teacher):
    case, teacher = make_case((8, 12)), online_teacher()
    plan = make_plan(2, teacher=teacher)
    hidden, table = [jnp.float32(h) for h in case.hidden], jnp.float32(case.table)
    gradient = jax.grad(lambda teacher: case.losses(plan, hidden, table, teacher).loss)(teacher)
    assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(gradient))


def test_a_label_that_is_no_id_poisons_the_loss_unless_it_is_masked(make_case, make_plan):
    case = make_case((8, 12))
    case.labels[3], case.weights[3] = V, 0.0
    assert np.isfinite(case.value_and_gradients(make_plan(2))[0])
    case.weights[3] = 1.0
    assert np.isnan(case.value_and_gradients(make_plan(2))[0])


def soft_value_and_gradients(case, plan, labels, table=True):
    """The loss of a case with other labels, and its gradients, compiled."""

    def loss(outputs):
        table_VD = jnp.float32(case.table) if table else None
        return nested_loss(
            plan,
            outputs,
            table_VD,
            labels,
            case.weights,
            term_weights_M=case.term_weights[: len(plan.terms)],
            total=jnp.sum(case.weights),
        ).loss

    outputs = [jnp.float32(h if table else h @ case.table.T) for h in case.hidden]
    return jax.jit(jax.value_and_grad(loss))(outputs)


@pytest.mark.parametrize("table", [True, False], ids=["hidden states", "logits"])
def test_the_loss_of_soft_labels_is_the_mean_of_their_cross_entropies(make_case, make_plan, table):
    case, plan = make_case((12, 12)), make_plan(2, temperature=2.0)
    rng = np.random.default_rng(7)
    second, share = rng.integers(0, V, N), rng.random(N).astype(np.float32)
    soft = SoftLabels.of_two(*map(jnp.asarray, (case.labels, second, share)))
    value, gradients = soft_value_and_gradients(case, plan, soft, table)

    # In float64, by formula: dz = p - y of each label's share y, and T (p - q) from the TA.
    expected = 0.0
    logits = [h @ case.table.T for h in case.hidden]
    y = np.zeros((N, V))
    np.add.at(y, (np.arange(N), case.labels), np.float64(share))
    np.add.at(y, (np.arange(N), second), 1 - np.float64(share))
    weights = np.float64(case.weights) / np.float64(case.weights).sum()
    log_p = [np.asarray(jax.nn.log_softmax(z)) for z in logits]
    log_q = [np.asarray(jax.nn.log_softmax(z / 2)) for z in logits]
    d_logits = []
    for k in (0, 1):
        a = np.float64(case.term_weights[k])
        expected += a * (weights * -(y * log_p[k]).sum(-1)).sum()
        d_logits.append(a * weights[:, None] * (np.exp(log_p[k]) - y))
    a = np.float64(case.term_weights[2])
    divergence = (np.exp(log_q[1]) * (log_q[1] - log_q[0])).sum(-1)
    expected += a * 4 * (weights * divergence).sum()
    d_logits[0] += a * weights[:, None] * 2 * (np.exp(log_q[0]) - np.exp(log_q[1]))
    assert float(value) == pytest.approx(expected, rel=1e-5)
    for gradient, dz in zip(gradients, d_logits, strict=True):
        dz = dz @ case.table if table else dz
        np.testing.assert_allclose(gradient, dz, atol=1e-5 * np.abs(dz).max())


@pytest.mark.parametrize("table", [True, False], ids=["hidden states", "logits"])
def test_a_label_that_has_all_of_the_share_is_a_plain_one_bit_for_bit(make_case, make_plan, table):
    case, plan = make_case((12, 12)), make_plan(2)
    second = np.random.default_rng(7).integers(0, V, N)
    ones = jnp.ones(N)
    plain = soft_value_and_gradients(case, plan, jnp.asarray(case.labels), table)
    for labels in (
        SoftLabels.of_two(jnp.asarray(case.labels), jnp.asarray(second), ones),
        SoftLabels.of_two(jnp.asarray(second), jnp.asarray(case.labels), 1 - ones),
    ):
        soft = soft_value_and_gradients(case, plan, labels, table)
        jax.tree.map(np.testing.assert_array_equal, soft, plain)
