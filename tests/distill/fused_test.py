import dataclasses
import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from matta_jax.distill import OnlineTeacher, Plan, Term, TopKTeacher, nested_loss
from matta_jax.errors import UserError
from matta_jax.sharding import Layout, collectives, loss_layout, make_mesh

N, V = 37, 51  # Neither a multiple of the chunk nor of the devices.


def make_plan(num_streams, *, temperature=1.0, teacher=None, chunk_size=8, **fields):
    """Cross-entropy of each stream, distillation into all but the last, and a Teacher's terms where
    one is named.
    """
    terms = [Term(f"ce_{k}", k, 1.0) for k in range(num_streams)]
    terms += [Term(f"distill_{k}", k, 1.0, "ta", temperature) for k in range(num_streams - 1)]
    if teacher is not None:
        terms += [
            Term(f"teacher_{k}", k, 1.0, "teacher", temperature) for k in (0, num_streams - 1)
        ]
    return Plan(tuple(terms), student=0, ta=num_streams - 1, chunk_size=chunk_size, **fields)


@dataclasses.dataclass
class Case:
    """Operands of a loss, in numpy."""

    hidden: list
    table: np.ndarray
    labels: np.ndarray
    weights: np.ndarray
    term_weights: np.ndarray

    def losses(self, plan, hidden, table, teacher=None):
        total = jnp.sum(self.weights)
        weights = self.term_weights[: len(plan.terms)]
        return nested_loss(
            plan,
            hidden,
            table,
            self.labels,
            self.weights,
            term_weights_M=weights,
            total=total,
            teacher=teacher,
        )

    def value_and_gradients(self, plan, teacher=None, dtype=jnp.float32):
        """The loss, its gradients and all sums of the fused form."""
        hidden = [jnp.asarray(h, dtype) for h in self.hidden]

        @jax.jit
        def compute(hidden, table, teacher):
            def loss(hidden, table):
                losses = self.losses(plan, hidden, table, teacher)
                return losses.loss, losses

            return jax.value_and_grad(loss, (0, 1), has_aux=True)(hidden, table)

        (loss, losses), (d_hidden, d_table) = compute(
            hidden, jnp.asarray(self.table, jnp.float32), teacher
        )
        return float(loss), d_hidden, d_table, losses

    def expected(self, plan, teacher=None, dtype=jnp.float32):
        """The same of the naive form in float64, from the same rounded operands."""
        hidden = [np.asarray(jnp.asarray(h, dtype), np.float64) for h in self.hidden]
        table = np.asarray(jnp.asarray(self.table, jnp.float32).astype(dtype), np.float64)
        with jax.enable_x64(True):
            value, gradients = jax.value_and_grad(
                functools.partial(self.naive, plan, teacher), (0, 1)
            )(hidden, table)
            return float(value), *jax.tree.map(np.asarray, gradients)

    def naive(self, plan, teacher, hidden, table):
        """The definition: full logits, one term after the other, jax.grad for the gradients."""
        z = [h @ table[:, : h.shape[1]].T for h in hidden]
        weights, loss = self.weights.astype(np.float64), 0.0
        mean = lambda values: (values * weights).sum() / weights.sum()
        kl = lambda log_a, log_b: (jnp.exp(log_a) * (log_a - log_b)).sum(-1)
        for term, weight in zip(plan.terms, self.term_weights.astype(np.float64), strict=False):
            T = term.temperature
            log_p = jax.nn.log_softmax(z[term.stream] / (1.0 if term.target == "labels" else T))
            if term.target == "labels":
                value = -jnp.take_along_axis(log_p, self.labels[:, None], -1)[:, 0]
            elif isinstance(teacher, TopKTeacher) and term.target == "teacher":
                rows = np.arange(len(self.labels))[:, None]
                inside = log_p[rows, teacher.ids]
                outside = jnp.ones_like(log_p).at[rows, teacher.ids].set(0.0)
                q, q_tail = np.float64(teacher.log_probs), np.float64(teacher.tail)
                has_tail = np.isfinite(q_tail)
                log_tail = jnp.log(jnp.where(has_tail, jnp.sum(jnp.exp(log_p) * outside, -1), 1.0))
                tail = np.exp(q_tail) * (np.where(has_tail, q_tail, 0.0) - log_tail)
                value = kl(q, inside) + tail
            else:
                if term.target == "teacher":
                    source = np.float64(teacher.hidden) @ np.float64(teacher.head).T
                else:
                    source = jax.lax.stop_gradient(z[plan.ta])
                log_q = jax.nn.log_softmax(source / T)
                kind = "forward_kl" if term.target == "teacher" else plan.divergence
                if kind == "forward_kl":
                    value = kl(log_q, log_p)
                elif kind == "reverse_kl":
                    value = kl(log_p, log_q)
                else:
                    log_m = jnp.log(plan.beta * jnp.exp(log_q) + (1 - plan.beta) * jnp.exp(log_p))
                    value = plan.beta * kl(log_q, log_m) + (1 - plan.beta) * kl(log_p, log_m)
            loss = loss + weight * mean(value) * (1.0 if term.target == "labels" else T**2)
        return loss


def make_case(widths, seed=0, num_tokens=N):
    rng = np.random.default_rng(seed)
    return Case(
        hidden=[rng.normal(size=(num_tokens, d)) for d in widths],
        table=rng.normal(size=(V, max(widths))) / np.sqrt(max(widths)) * 2,
        labels=rng.integers(0, V, num_tokens),
        weights=(rng.random(num_tokens) * (rng.random(num_tokens) < 0.7)).astype(np.float32),
        term_weights=rng.uniform(0.2, 1.5, 16).astype(np.float32),
    )


def top_k_teacher(k, temperature=1.0, seed=3, sharpness=2.0):
    rng = np.random.default_rng(seed)
    log_p = np.float64(jax.nn.log_softmax(sharpness * rng.normal(size=(N, V)) / temperature))
    ids = np.argsort(-log_p, -1)[:, :k]
    inside = np.take_along_axis(log_p, ids, -1)
    outside = np.delete(np.exp(log_p), [], -1)
    np.put_along_axis(outside, ids, 0.0, -1)
    with np.errstate(divide="ignore"):
        tail = np.log(outside.sum(-1))
    return TopKTeacher(
        jnp.asarray(ids), jnp.float32(inside), jnp.float32(tail), temperature=temperature
    )


def online_teacher(seed=4):
    rng = np.random.default_rng(seed)
    return OnlineTeacher(
        jnp.float32(rng.normal(size=(N, 10))), jnp.float32(rng.normal(size=(V, 10)))
    )


def assert_close(ours, expected, rtol=5e-6):
    """Relative to the largest value, as a gradient is used."""
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        b = np.float64(b)
        assert np.abs(np.float64(a) - b).max() <= rtol * np.abs(b).max()


WIDTHS = [(12,), (12, 12), (8, 12), (12, 12, 12), (6, 12, 12), (4, 8, 8, 12)]


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("widths", WIDTHS, ids=str)
def test_value_and_gradients_are_those_of_the_naive_form_in_float64(widths, temperature):
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
def test_all_divergences_are_those_of_the_naive_form(divergence, temperature):
    case = make_case((8, 12, 12))
    plan = make_plan(3, temperature=temperature, divergence=divergence, beta=0.3)
    loss, *gradients, _ = case.value_and_gradients(plan)
    value, *expected = case.expected(plan)
    assert loss == pytest.approx(value, rel=5e-6)
    assert_close(gradients, expected)


@pytest.mark.parametrize("widths", [(8, 12), (12, 12)], ids=str)
def test_bf16_hidden_states_are_summed_in_float32(widths):
    """The value is exact for the rounded operands; gradients pass through a bf16 dz and, for hidden
    states, result.
    """
    case, plan = make_case(widths), make_plan(2, temperature=2.0)
    loss, d_hidden, d_table, _ = case.value_and_gradients(plan, dtype=jnp.bfloat16)
    value, *expected = case.expected(plan, dtype=jnp.bfloat16)
    assert loss == pytest.approx(value, rel=5e-6)
    assert d_hidden[0].dtype == jnp.bfloat16 and d_table.dtype == jnp.float32
    assert_close((d_hidden, d_table), expected, rtol=1e-2)


@pytest.mark.parametrize("chunk_size", [1, 5, 37, 64])
def test_the_chunk_size_changes_nothing(chunk_size):
    case = make_case((8, 12))
    loss, *gradients, losses = case.value_and_gradients(make_plan(2, chunk_size=chunk_size))
    other, *expected, other_losses = case.value_and_gradients(make_plan(2, chunk_size=8))
    assert loss == pytest.approx(other, rel=1e-6)
    assert_close((gradients, losses), (expected, other_losses), rtol=1e-6)


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl", "jensen_shannon"])
def test_a_student_that_is_the_ta_has_no_divergence_no_gradient_and_full_agreement(divergence):
    case = make_case((12, 12))
    case.hidden[0] = case.hidden[1]
    case.term_weights[:] = [0, 0, 1, *[0] * 13]
    plan = make_plan(2, temperature=2.0, divergence=divergence)
    loss, d_hidden, d_table, losses = case.value_and_gradients(plan)
    assert loss == pytest.approx(0, abs=1e-7)
    for gradient in (*d_hidden, d_table):
        np.testing.assert_allclose(gradient, 0, atol=1e-8)
    assert float(losses.agreement) == pytest.approx(float(losses.count))


def test_agreement_counts_equal_argmaxes():
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


def test_distillation_reaches_neither_the_ta_nor_its_own_columns():
    case = make_case((8, 12))
    case.term_weights[:] = [0, 0, 1, *[0] * 13]
    _, d_hidden, d_table, _ = case.value_and_gradients(make_plan(2))
    assert np.all(np.asarray(d_hidden[1]) == 0) and np.all(np.asarray(d_table[:, 8:]) == 0)
    assert np.abs(d_hidden[0]).max() > 1e-4 and np.abs(d_table[:, :8]).max() > 1e-4


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("k", [1, 5, V])
def test_cached_top_k_labels_are_those_of_the_naive_form(k, temperature):
    case, teacher = make_case((8, 12)), top_k_teacher(k, temperature)
    plan = make_plan(2, temperature=temperature, teacher=teacher)
    loss, *gradients, _ = case.value_and_gradients(plan, teacher)
    value, *expected = case.expected(plan, teacher)
    assert loss == pytest.approx(value, rel=5e-6)
    assert_close(gradients, expected)


def test_a_tail_of_hardly_any_mass_keeps_its_digits():
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


def test_all_ids_cached_equal_the_online_teacher():
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


def test_an_online_teacher_gets_no_gradient():
    case, teacher = make_case((8, 12)), online_teacher()
    plan = make_plan(2, teacher=teacher)
    hidden, table = [jnp.float32(h) for h in case.hidden], jnp.float32(case.table)
    gradient = jax.grad(lambda teacher: case.losses(plan, hidden, table, teacher).loss)(teacher)
    assert all(np.all(np.asarray(leaf) == 0) for leaf in jax.tree.leaves(gradient))


def test_a_label_that_is_no_id_poisons_the_loss_unless_it_is_masked():
    case = make_case((8, 12))
    case.labels[3], case.weights[3] = V, 0.0
    assert np.isfinite(case.value_and_gradients(make_plan(2))[0])
    case.weights[3] = 1.0
    assert np.isnan(case.value_and_gradients(make_plan(2))[0])


def test_weights_that_move_do_not_recompile():
    case, plan = make_case((8, 12)), make_plan(2)

    @jax.jit
    def gradient(hidden, weights):
        case.term_weights = weights
        return jax.grad(lambda hidden: case.losses(plan, hidden, jnp.float32(case.table)).loss)(
            hidden
        )

    hidden = [jnp.float32(h) for h in case.hidden]
    results = [np.asarray(gradient(hidden, jnp.float32([1, 1, w]))[0]) for w in (0.0, 0.3, 1.0)]
    assert gradient._cache_size() == 1 and not np.allclose(results[0], results[2])


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "jaxpr")):
            if hasattr(value, "jaxpr"):
                yield from equations(value.jaxpr)
            elif hasattr(value, "eqns"):
                yield from equations(value)


def test_evaluation_does_no_gradient_work_and_nothing_has_the_size_of_all_logits():
    case, plan = make_case((8, 12, 12)), make_plan(3)
    hidden, table = [jnp.float32(h) for h in case.hidden], jnp.float32(case.table)
    loss = lambda hidden, table: case.losses(plan, hidden, table).loss
    forward = list(equations(jax.jit(loss).trace(hidden, table).jaxpr))
    backward = list(equations(jax.jit(jax.grad(loss, (0, 1))).trace(hidden, table).jaxpr))
    matmuls = lambda found: sum(equation.primitive.name == "dot_general" for equation in found)
    # One for the stream of width 8, one for both of width 12; three times that with gradients.
    assert (matmuls(forward), matmuls(backward)) == (2, 6)
    for equation in forward + backward:
        for out in equation.outvars:
            assert out.aval.size < N * V, equation


def compiled(num_tokens, widths, vocab_size, function, chunk_size=256):
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    plan = make_plan(len(widths), chunk_size=chunk_size)
    labels = jax.ShapeDtypeStruct((num_tokens,), jnp.int32)
    operands = (
        [shape(num_tokens, d) for d in widths],
        shape(vocab_size, max(widths)),
        labels,
        shape(num_tokens),
    )
    jitted = jax.jit(jax.value_and_grad(functools.partial(function, plan), (0, 1)))
    return jitted.lower(*operands).compile().memory_analysis().temp_size_in_bytes


def fused(plan, hidden, table, labels, weights):
    ones = jnp.ones(len(plan.terms))
    return nested_loss(
        plan, hidden, table, labels, weights, term_weights_M=ones, total=weights.sum()
    ).loss


def naive(plan, hidden, table, labels, weights):
    """Three losses on full logits; the benchmark compares more peers."""
    log_p = [jax.nn.log_softmax(h @ table[:, : h.shape[1]].T) for h in hidden]
    losses = [-jnp.take_along_axis(p, labels[:, None], -1)[:, 0] for p in log_p]
    log_q = jax.lax.stop_gradient(log_p[-1])
    losses.append(jnp.sum(jnp.exp(log_q) * (log_q - log_p[0]), -1))
    return sum(jnp.sum(loss * weights) for loss in losses) / weights.sum()


def test_temporary_memory_is_an_eighth_of_the_naive_form():
    assert compiled(2048, (256, 512), 50257, fused) <= compiled(2048, (256, 512), 50257, naive) / 8


def test_temporary_memory_is_a_fifth_of_one_array_of_logits_and_constant_in_the_number_of_tokens():
    small, large = (compiled(n, (1024, 1024), 50257, fused) for n in (2048, 16384))
    assert large <= 0.20 * 16384 * 50257 * 4
    assert large - small < 64 * (
        16384 - 2048
    )  # Labels, weights: a few bytes a token; a hidden state has 4,096.


def place(case, mesh):
    """The operands as training has them: tokens over the data axes, the table's
    columns over fsdp.
    """
    tokens, columns = NamedSharding(mesh, P(("data", "fsdp"))), NamedSharding(mesh, P(None, "fsdp"))
    hidden = [jax.device_put(jnp.float32(h), tokens) for h in case.hidden]
    return hidden, jax.device_put(jnp.float32(case.table), columns), tokens, columns


MESHES = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)]


@pytest.mark.parametrize("kind", ["none", "online", "top_k"])
@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_any_mesh_gives_the_result_of_one_device(sizes, kind):
    case = make_case((8, 16, 16), num_tokens=40)
    teacher = {"none": None, "online": online_teacher(), "top_k": top_k_teacher(5)}[kind]
    if teacher is not None:  # 40 tokens divide over 8 devices.
        grow = lambda leaf: jnp.concatenate([leaf, leaf[:3]]) if leaf.shape[0] == N else leaf
        teacher = jax.tree.map(grow, teacher)
    plan = make_plan(
        3,
        teacher=teacher,
        chunk_size=3,
        divergence="jensen_shannon" if kind == "none" else "forward_kl",
    )
    loss, *gradients, losses = case.value_and_gradients(plan, teacher)
    mesh = make_mesh(sizes)
    many = dataclasses.replace(plan, layout=loss_layout(mesh))
    hidden, table, tokens, columns = place(case, mesh)

    @functools.partial(jax.jit, out_shardings=(None, ([tokens] * 3, columns)))
    def compute(hidden, table):
        def loss(hidden, table):
            losses = case.losses(many, hidden, table, teacher)
            return losses.loss, losses

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(hidden, table)

    (other, other_losses), others = compute(hidden, table)
    assert loss == pytest.approx(float(other), rel=2e-6)
    assert_close((*gradients, losses), (*others, other_losses), rtol=2e-6)


def loss_collectives(mesh, layout):
    """What crosses devices in the loss and its gradient: 4,096 tokens, widths 32 and 64, 1,001 ids,
    chunks of 128.
    """
    shape = lambda spec, *sizes: jax.ShapeDtypeStruct(
        sizes, jnp.float32, sharding=NamedSharding(mesh, spec)
    )
    tokens, columns = P(("data", "fsdp")), P(None, "fsdp")
    hidden, table = [shape(tokens, 4096, 32), shape(tokens, 4096, 64)], shape(columns, 1001, 64)
    labels = jax.ShapeDtypeStruct((4096,), jnp.int32, sharding=NamedSharding(mesh, tokens))
    plan = make_plan(2, chunk_size=128, layout=layout)
    total = shape(P())

    def loss(hidden, table, labels, weights, total):
        ones = jnp.ones(len(plan.terms))
        return nested_loss(
            plan, hidden, table, labels, weights, term_weights_M=ones, total=total
        ).loss

    shardings = (
        NamedSharding(mesh, P()),
        jax.tree.map(lambda leaf: leaf.sharding, (hidden, table)),
    )
    jitted = jax.jit(jax.value_and_grad(loss, (0, 1)), out_shardings=shardings)
    return collectives(
        jitted.lower(hidden, table, labels, shape(tokens, 4096), total).compile().as_text()
    )


def check_collectives(mesh):
    """One gather of the table, one reduction of its gradient, one of scalars; [chunk] vectors alone
    in the loop.
    """
    data, fsdp, tensor = mesh.devices.shape
    found = loss_collectives(mesh, loss_layout(mesh))
    inside = [c for c in found if c.in_loop]
    outside = [c for c in found if not c.in_loop]
    assert all(c.kind == "all-reduce" and c.bytes <= 128 * 4 * 6 for c in inside)
    assert len(inside) == (3 if tensor > 1 else 0)
    gathered = [c.shapes for c in outside if c.kind == "all-gather"]
    rows = -(-1001 // tensor)
    # The gradient of the padded table comes back whole along its rows where these were split.
    assert len(gathered) <= (fsdp > 1) + (tensor > 1)
    assert all(max(shape) <= 1001 + tensor for shapes in gathered for shape in shapes)
    reduced = [c.shapes for c in outside if c.kind in ("all-reduce", "reduce-scatter")]
    each = sorted(shape for shapes in reduced for shape in shapes)  # XLA may put several into one.
    expected = [(5,)] if data * fsdp > 1 else []
    expected += [(rows, 64 // fsdp)] * ((data > 1) + (fsdp > 1))
    if tensor > 1:  # The hidden states' gradients, summed over the vocabulary's devices.
        expected += [(4096 // (data * fsdp), width) for width in (32, 64)]
    assert each == sorted(expected)
    assert not [c for c in found if c.kind in ("collective-permute", "all-to-all")]


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_only_chunk_vectors_cross_devices_in_the_loop(sizes):
    check_collectives(make_mesh(sizes))


def test_plain_jit_fails_this_check():
    """The reason for shard_map: without it every device gathers, or the loop does."""
    found = loss_collectives(make_mesh((8, 1, 1)), None)
    hidden = [
        c for c in found if c.kind == "all-gather" and any(4096 in s or 128 in s for s in c.shapes)
    ]
    assert hidden or any(c.in_loop and c.bytes > 128 * 4 * 6 for c in found)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (extra: tpu)"
)
@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_only_chunk_vectors_cross_devices_in_the_loop_on_a_tpu(sizes, tpu_mesh):
    check_collectives(tpu_mesh(sizes))


def test_logits_without_a_table_are_a_sigmoid_or_a_softmax():
    rng = np.random.default_rng(0)
    z, labels = (
        [jnp.float32(rng.normal(size=N)) for _ in range(2)],
        jnp.asarray(rng.integers(0, 2, N)),
    )
    plan, weights = make_plan(2), jnp.ones(N)

    def loss(z):
        return nested_loss(
            plan, z, None, labels, weights, term_weights_M=jnp.ones(3), total=weights.sum()
        ).loss

    def expected(z):
        ce = [jnp.mean(jnp.logaddexp(0, x) - labels * x) for x in z]
        q, p = jax.lax.stop_gradient(jax.nn.sigmoid(z[1])), jax.nn.sigmoid(z[0])
        kl = q * jnp.log(q / p) + (1 - q) * jnp.log((1 - q) / (1 - p))
        return ce[0] + ce[1] + jnp.mean(kl)

    value, gradient = jax.value_and_grad(loss)(z)
    other, others = jax.value_and_grad(expected)(z)
    assert float(value) == pytest.approx(float(other), rel=1e-5)
    assert_close(gradient, others, rtol=1e-5)
    both = [jnp.stack([jnp.zeros(N), x], -1) for x in z]
    assert float(loss(both)) == pytest.approx(float(value), rel=1e-6)


def bad_calls():
    case = make_case((8, 12))
    hidden, table = [jnp.float32(h) for h in case.hidden], jnp.float32(case.table)
    foreign = OnlineTeacher(jnp.ones((N, 4)), jnp.ones((V + 1, 4)))
    beyond = dataclasses.replace(top_k_teacher(5), ids=jnp.full((N, 5), V))
    one = Plan((Term("distill", 0, 1.0, "ta"),), 0, 0)
    yield (
        (lambda: Term("distill", 0, 1.0, "ta", 0.0)),
        ["temperature=0.0", "'distill'", "greater than 0"],
    )
    yield (lambda: Term("distill", 0, 1.0, "ta", float("nan"))), ["temperature=nan"]
    yield (lambda: case.losses(one, hidden[:1], table)), ["'distill'", "stream 0 of 1", "nest"]
    for teacher, words in (
        (None, ["'teacher_0'", "teacher=None"]),
        (foreign, [f"{V + 1} ids", f"Student's of {V}", "tokenizer"]),
        (beyond, [f"id {V}", f"vocabulary of {V}"]),
        (top_k_teacher(5, temperature=2.0), ["temperature=1.0", "2.0", "captured"]),
    ):
        plan = make_plan(2, teacher="any")
        yield (lambda plan=plan, teacher=teacher: case.losses(plan, hidden, table, teacher)), words


@pytest.mark.parametrize(
    ("call", "words"), list(bad_calls()), ids=lambda x: str(x[0]) if isinstance(x, list) else ""
)
def test_what_a_user_gets_wrong_is_named(call, words):
    with pytest.raises(UserError) as error:
        call()
    for word in words:
        assert word in str(error.value)


def test_a_layout_is_part_of_the_plan():
    mesh = make_mesh((1, 1, 1))
    assert loss_layout(mesh) is None
    assert loss_layout(make_mesh((2, 2, 2))) == Layout(
        make_mesh((2, 2, 2)), ("data", "fsdp"), "fsdp", "tensor"
    )
    assert loss_layout(make_mesh((8, 1, 1))).vocab is None
