import dataclasses
import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from matta_jax.distill import LossPlan, OnlineTeacher, Term, _scan, nested_loss
from matta_jax.errors import UserError
from matta_jax.sharding import Layout, collectives, loss_layout, make_mesh

N, V = 37, 51  # Of the cases in conftest.py.


@pytest.mark.parametrize("chunk_size", [1, 5, 37, 64])
def test_the_chunk_size_changes_nothing(make_case, make_plan, assert_close, chunk_size):
    case = make_case((8, 12))
    loss, *gradients, losses = case.value_and_gradients(make_plan(2, chunk_size=chunk_size))
    other, *expected, other_losses = case.value_and_gradients(make_plan(2, chunk_size=8))
    assert loss == pytest.approx(other, rel=1e-6)
    assert_close((gradients, losses), (expected, other_losses), rtol=1e-6)


@pytest.mark.parametrize("rows", [1, 48, 1024], ids=["no groups", "groups of three", "one group"])
def test_the_group_that_the_tables_gradient_is_added_in_changes_nothing(
    make_case, make_plan, assert_close, monkeypatch, rows
):
    """In float32 a group is one chunk."""
    case, plan = make_case((8, 12)), make_plan(2)
    expected, *expected_gradients = case.expected(plan, dtype=jnp.bfloat16)
    monkeypatch.setattr(_scan, "_ROWS_OF_GROUP", rows)
    loss, *gradients, _ = case.value_and_gradients(plan, dtype=jnp.bfloat16)
    assert loss == pytest.approx(expected, rel=1e-5)
    # What is rounded are the gradients of logits, before their products.
    assert_close(gradients, expected_gradients, rtol=0.02)


def test_a_chunk_is_smaller_where_its_logits_would_leave_the_core(
    make_case, make_plan, assert_close, monkeypatch
):
    case, plan = make_case((8, 12)), make_plan(2, chunk_size=32)
    sizes = []
    in_chunks = _scan._in_chunks
    monkeypatch.setattr(
        _scan, "_in_chunks", lambda *args: sizes.append(in_chunks(*args).shape) or in_chunks(*args)
    )
    expected, *expected_gradients = case.expected(plan, dtype=jnp.bfloat16)
    monkeypatch.setattr(_scan, "_FEWEST_TOKENS", 1)
    monkeypatch.setattr(_scan, "_ROWS_OF_GROUP", 1)
    # Room for the logits of nine tokens: eight are the power of two below.
    monkeypatch.setattr(_scan, "_LOGITS_IN_CORE", 9 * 4 * V * 2)
    loss, *gradients, _ = case.value_and_gradients(plan, dtype=jnp.bfloat16)
    assert {shape[:2] for shape in sizes} == {(5, 8)}
    assert loss == pytest.approx(expected, rel=1e-5)
    assert_close(gradients, expected_gradients, rtol=0.02)

    # In float32, and where the table is not in the core, there are as many tokens as may be.
    for dtype, table in ((jnp.float32, _scan._TABLE_IN_CORE), (jnp.bfloat16, 100)):
        sizes.clear()
        monkeypatch.setattr(_scan, "_TABLE_IN_CORE", table)
        case.value_and_gradients(plan, dtype=dtype)
        assert {shape[:2] for shape in sizes} == {(2, 19)}


def test_weights_that_move_do_not_recompile(make_case, make_plan):
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


def test_evaluation_does_no_gradient_work_and_nothing_has_the_size_of_all_logits(
    make_case, make_plan
):
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


def temporary_bytes(plan, function, num_tokens, widths, vocab_size):
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
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


def test_temporary_memory_is_an_eighth_of_the_naive_form(make_plan):
    plan = make_plan(2, chunk_size=256)
    fused_bytes = temporary_bytes(plan, fused, 2048, (256, 512), 50257)
    naive_bytes = temporary_bytes(plan, naive, 2048, (256, 512), 50257)
    assert fused_bytes <= naive_bytes / 8


def test_temporary_memory_is_a_fifth_of_one_array_of_logits_and_constant_in_the_number_of_tokens(
    make_plan,
):
    plan = make_plan(2, chunk_size=256)
    small = temporary_bytes(plan, fused, 2048, (1024, 1024), 50257)
    large = temporary_bytes(plan, fused, 16384, (1024, 1024), 50257)
    assert large <= 0.20 * 16384 * 50257 * 4
    # Labels, weights: a few bytes a token; a hidden state has 4,096.
    assert large - small < 64 * (16384 - 2048)


def place(case, mesh):
    """The operands as training has them: tokens over the data axes, the table's
    columns over fsdp.
    """
    tokens, columns = NamedSharding(mesh, P(("data", "fsdp"))), NamedSharding(mesh, P(None, "fsdp"))
    hidden = [jax.device_put(jnp.float32(h), tokens) for h in case.hidden]
    return hidden, jax.device_put(jnp.float32(case.table), columns), tokens, columns


MESHES = [(8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)]


@pytest.mark.few(3)
@pytest.mark.parametrize("kind", ["none", "online", "top_k"])
@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_any_mesh_gives_the_result_of_one_device(
    make_case, make_plan, top_k_teacher, online_teacher, assert_close, sizes, kind
):
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


def loss_collectives(plan, mesh):
    """What crosses devices in the loss and its gradient: 4,096 tokens, widths 32 and 64, 1,001 ids,
    chunks of 128.
    """
    shape = lambda spec, *sizes: jax.ShapeDtypeStruct(
        sizes, jnp.float32, sharding=NamedSharding(mesh, spec)
    )
    tokens, columns = P(("data", "fsdp")), P(None, "fsdp")
    hidden, table = [shape(tokens, 4096, 32), shape(tokens, 4096, 64)], shape(columns, 1001, 64)
    labels = jax.ShapeDtypeStruct((4096,), jnp.int32, sharding=NamedSharding(mesh, tokens))
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


def check_collectives(plan, mesh):
    """One gather of the table, one reduction of its gradient, one of scalars; [chunk] vectors alone
    in the loop.
    """
    data, fsdp, tensor, _ = mesh.devices.shape
    plan = dataclasses.replace(plan, layout=loss_layout(mesh))
    found = loss_collectives(plan, mesh)
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
def test_only_chunk_vectors_cross_devices_in_the_loop(make_plan, sizes):
    check_collectives(make_plan(2, chunk_size=128), make_mesh(sizes))


def test_plain_jit_fails_this_check(make_plan):
    """The reason for shard_map: without it every device gathers, or the loop does."""
    found = loss_collectives(make_plan(2, chunk_size=128), make_mesh((8, 1, 1)))
    hidden = [
        c for c in found if c.kind == "all-gather" and any(4096 in s or 128 in s for s in c.shapes)
    ]
    assert hidden or any(c.in_loop and c.bytes > 128 * 4 * 6 for c in found)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (extra: tpu)"
)
@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_only_chunk_vectors_cross_devices_in_the_loop_on_a_tpu(make_plan, sizes, tpu_mesh):
    check_collectives(make_plan(2, chunk_size=128), tpu_mesh(sizes))


def test_logits_without_a_table_are_a_sigmoid_or_a_softmax(make_plan, assert_close):
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

    value, gradient = jax.jit(jax.value_and_grad(loss))(z)
    other, others = jax.jit(jax.value_and_grad(expected))(z)
    assert float(value) == pytest.approx(float(other), rel=1e-5)
    assert_close(gradient, others, rtol=1e-5)
    both = [jnp.stack([jnp.zeros(N), x], -1) for x in z]
    assert float(jax.jit(loss)(both)) == pytest.approx(float(value), rel=1e-6)


@pytest.mark.parametrize("temperature", [0.0, float("nan")])
def test_a_temperature_that_is_none_is_named(temperature):
    with pytest.raises(UserError) as error:
        Term("distill", 0, 1.0, "ta", temperature)
    for word in (f"temperature={temperature}", "'distill'", "greater than 0"):
        assert word in str(error.value)


def test_a_ta_that_has_nobody_to_teach_it_is_named(make_case):
    case = make_case((8, 12))
    plan = LossPlan((Term("distill", 0, 1.0, "ta"),), 0, 0)
    with pytest.raises(UserError) as error:
        case.losses(plan, [jnp.float32(case.hidden[0])], jnp.float32(case.table))
    for word in ("'distill'", "stream 0 of 1", "nest"):
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("none", ["'teacher_0'", "teacher=None"]),
        ("foreign", [f"{V + 1} ids", f"Student's of {V}", "tokenizer"]),
        ("beyond", [f"id {V}", f"vocabulary of {V}"]),
        ("hot", ["temperature=1.0", "2.0", "captured"]),
    ],
)
def test_a_teacher_that_does_not_fit_is_named(make_case, make_plan, top_k_teacher, kind, words):
    case = make_case((8, 12))
    hidden = [jnp.float32(h) for h in case.hidden]
    teacher = {
        "none": None,
        "foreign": OnlineTeacher(jnp.ones((N, 4)), jnp.ones((V + 1, 4))),
        "beyond": dataclasses.replace(top_k_teacher(5), ids=jnp.full((N, 5), V)),
        "hot": top_k_teacher(5, temperature=2.0),
    }[kind]
    with pytest.raises(UserError) as error:
        case.losses(make_plan(2, teacher="any"), hidden, jnp.float32(case.table), teacher)
    for word in words:
        assert word in str(error.value)


def test_a_layout_is_part_of_the_plan():
    mesh = make_mesh((1, 1, 1))
    assert loss_layout(mesh) is None
    assert loss_layout(make_mesh((2, 2, 2))) == Layout(
        make_mesh((2, 2, 2)), ("data", "fsdp"), "fsdp", "tensor"
    )
    assert loss_layout(make_mesh((8, 1, 1))).vocab is None
