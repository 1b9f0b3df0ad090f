import dataclasses
import functools
import importlib.util
import pathlib
import warnings

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from matta_jax import optim
from matta_jax.optim import MatrixView, Shampoo, scale_by_shampoo
from matta_jax.sharding import collectives, make_mesh

SMALL = Shampoo(block_size=8, precondition_every=1, start_step=0, beta2=0.9)


def run(settings, gradients, *, views=None, mesh=None, state=None):
    """Applies the transform to a list of gradients; returns all updates and the last state."""
    transform = scale_by_shampoo(settings, views=views, mesh=mesh)
    state = transform.init(gradients[0]) if state is None else state
    step, updates = jax.jit(transform.update), []
    for gradient in gradients:
        update, state = step(gradient, state)
        updates.append(update)
    return updates, state


def randoms(shape, steps, seed=0):
    rng = np.random.default_rng(seed)
    # An anisotropic gradient with a mean: what preconditioning is for.
    scale = np.geomspace(1, 30, shape[-1])
    return [jnp.asarray((rng.normal(size=shape) + 0.3) * scale, jnp.float32) for _ in range(steps)]


def assert_close(ours, expected, rtol):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        assert np.abs(np.float64(a) - np.float64(b)).max() <= rtol * np.abs(np.float64(b)).max()


def reference(settings, gradients):
    """One matrix in float64 numpy: parts of equal size, eigendecompositions, norms of
    each block.
    """

    def parts(length):
        size = -(-length // -(-length // settings.block_size))
        return [slice(start, min(start + size, length)) for start in range(0, length, size)]

    def root(a):
        values, vectors = np.linalg.eigh(a)
        return (
            vectors * (np.maximum(values, 0) + settings.epsilon * values[-1]) ** -0.25 @ vectors.T
        )

    rows, columns = gradients[0].shape
    state, updates, beta2 = {}, [], settings.beta2
    for t, gradient in enumerate(gradients):
        update = np.zeros((rows, columns))
        for r in parts(rows):
            for c in parts(columns):
                g = np.float64(gradient[r, c])
                own = state.setdefault((r.start, c.start), {"L": 0, "R": 0, "nu": 0})
                own["L"] = beta2 * own["L"] + (1 - beta2) * g @ g.T
                own["R"] = beta2 * own["R"] + (1 - beta2) * g.T @ g
                own["nu"] = beta2 * own["nu"] + (1 - beta2) * g**2
                if t % settings.precondition_every == 0:
                    own["roots"] = root(own["L"]), root(own["R"])
                graft = g / (np.sqrt(own["nu"] / (1 - beta2 ** (t + 1))) + 1e-8)
                u = own["roots"][0] @ g @ own["roots"][1] if t >= settings.start_step else graft
                update[r, c] = u * np.linalg.norm(graft) / np.linalg.norm(u)
        updates.append(update)
    return updates


@pytest.mark.parametrize(
    ("every", "start", "block", "method"),
    [
        (1, 0, 8, "newton"),
        (1, 5, 8, "eigh"),
        (1, 3, 5, "newton"),
        (4, 4, 8, "newton"),
        (4, 0, 16, "eigh"),
    ],
)
def test_updates_are_those_of_a_float64_reference_over_25_steps(every, start, block, method):
    settings = dataclasses.replace(
        SMALL,
        precondition_every=every,
        start_step=start,
        block_size=block,
        root=method,
        epsilon=1e-3,
    )
    gradients = randoms((16, 11), 25)
    ours, state = run(settings, gradients)
    assert_close(ours, reference(settings, gradients), rtol=5e-6 if every == 1 else 1e-3)
    assert all(
        int(b.failures.sum()) == 0 and float(b.residual.max()) < 1e-4
        for b in state.buckets.values()
    )


PRECONDITION = importlib.util.find_spec("precondition") is not None


@pytest.mark.skipif(not PRECONDITION, reason="precondition-opt is not installed (extra: test)")
@pytest.mark.parametrize("every", [1, 4])
def test_agrees_with_the_public_distributed_shampoo(every, monkeypatch):
    """The oracle starts its statistics at ε I, grafts per parameter, and has its own power
    iteration.
    """
    for name in ("tree_map", "tree_flatten", "tree_unflatten"):
        monkeypatch.setattr(jax, name, getattr(jax.tree_util, name), raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from precondition import distributed_shampoo as public

        oracle = public.distributed_shampoo(
            1.0,
            block_size=8,
            beta1=0.0,
            beta2=0.9,
            matrix_epsilon=1e-4,
            start_preconditioning_step=3,
            preconditioning_compute_steps=every,
            graft_type=public.GraftingType.SGD,
            nesterov=False,
            best_effort_shape_interpretation=False,
        )
        gradients = randoms((16, 8), 12)
        params, theirs = jnp.zeros((16, 8)), []
        state = oracle.init(params)
        step = jax.jit(oracle.update)
        for gradient in gradients:
            update, state = step(gradient, state, params)
            theirs.append(-update)
    settings = dataclasses.replace(
        SMALL,
        precondition_every=every,
        start_step=3,
        grafting="sgd",
        graft_scope="parameter",
        epsilon=1e-4,
    )
    state = scale_by_shampoo(settings).init(gradients[0])
    ridge = jax.tree.map(lambda x: x + 1e-4 * jnp.eye(8), state.buckets["8x8"].statistics)
    state = state._replace(buckets={"8x8": state.buckets["8x8"]._replace(statistics=ridge)})
    ours, _ = run(settings, gradients, state=state)
    assert_close(ours, theirs, rtol=2e-5 if every == 1 else 1e-3)


def test_golden_updates():
    """A file of `tests/optim/golden.py`: what changes these numbers changes everybody's runs."""
    golden = np.load(pathlib.Path(__file__).with_name("golden.npz"))
    gradients = [
        {"w": jnp.asarray(w), "b": jnp.asarray(b)}
        for w, b in zip(golden["w"], golden["b"], strict=True)
    ]
    settings = Shampoo(block_size=6, precondition_every=2, start_step=1, beta2=0.95)
    ours, _ = run(settings, gradients)
    # Early statistics have low rank, whose roots differ by 3e-4 between one CPU and another.
    assert_close([u["w"] for u in ours], list(golden["update_w"]), rtol=2e-3)
    assert_close([u["b"] for u in ours], list(golden["update_b"]), rtol=1e-5)


def nest_views(cuts, aligned=True):
    return {"w": MatrixView((0,), (1,), *cuts) if aligned else MatrixView((0,), (1,))}


def nest_difference(student, ta, *, aligned, scope="block", steps=4, block=4):
    """Largest relative difference between the Student's slice of the TA's update and the Student's
    own update.
    """
    settings = dataclasses.replace(SMALL, block_size=block, graft_scope=scope)
    gradients = [{"w": g} for g in randoms(ta, steps, seed=sum(ta))]
    small = [{"w": g["w"][: student[0], : student[1]]} for g in gradients]
    cuts = ((student[0],), (student[1],))
    whole, _ = run(settings, gradients, views=nest_views(cuts, aligned))
    alone, _ = run(settings, small, views=nest_views(cuts, aligned))
    sliced = [u["w"][: student[0], : student[1]] for u in whole]
    scale = max(float(jnp.abs(u["w"]).max()) for u in alone)
    return max(float(jnp.abs(a - b["w"]).max()) for a, b in zip(sliced, alone, strict=True)) / scale


@hypothesis.settings(max_examples=5)
@hypothesis.given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 7), st.integers(1, 7))
def test_the_slice_of_the_tas_update_is_the_students_own(rows, columns, more_rows, more_columns):
    assert (
        nest_difference((rows, columns), (rows + more_rows, columns + more_columns), aligned=True)
        <= 1e-5
    )


@pytest.mark.slow
def test_without_aligned_cuts_or_norms_per_block_it_is_not():
    assert nest_difference((6, 6), (8, 10), aligned=True) <= 1e-5
    assert nest_difference((6, 6), (8, 10), aligned=False) > 0.05
    assert nest_difference((6, 6), (8, 10), aligned=True, scope="parameter") > 1e-3


@pytest.mark.parametrize("scale", [1e-8, 1e-4, 1e4, 1e8])
def test_the_direction_does_not_depend_on_the_gradients_scale(scale):
    gradients = randoms((8, 8), 3)
    direction = lambda updates: [u / jnp.linalg.norm(u) for u in updates]
    ours = direction(run(SMALL, [g * scale for g in gradients])[0])
    expected = direction(run(SMALL, gradients)[0])
    assert_close(ours[1:], expected[1:], rtol=1e-5)
    assert_close(
        ours, expected, rtol=1e-3
    )  # Statistics of a single gradient are ill-conditioned: rounding shows.


def orthogonal(size, seed):
    return jnp.asarray(
        np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0], jnp.float32
    )


def test_one_block_is_equivariant_to_rotations_and_transposition():
    settings = dataclasses.replace(SMALL, grafting="sgd", epsilon=1e-4)
    gradients = [g / 10 for g in randoms((6, 8), 4)]
    updates, _ = run(settings, gradients)
    a, b = orthogonal(6, 1), orthogonal(8, 2)
    assert_close(
        run(settings, [a @ g @ b for g in gradients])[0], [a @ u @ b for u in updates], rtol=1e-4
    )
    assert_close(run(settings, [g.T for g in gradients])[0], [u.T for u in updates], rtol=1e-4)


def test_blocks_may_be_permuted_and_padding_changes_nothing():
    gradients = randoms((16, 8), 4)
    updates, _ = run(SMALL, gradients)
    swap = lambda x: jnp.concatenate([x[8:], x[:8]])
    assert_close(run(SMALL, [swap(g) for g in gradients])[0], [swap(u) for u in updates], rtol=1e-5)
    padded = lambda g: jnp.pad(g[:6, :7], ((0, 2), (0, 1)))
    alone, _ = run(SMALL, [g[:6, :7] for g in gradients])
    assert_close(
        [u[:6, :7] for u in run(SMALL, [padded(g) for g in gradients])[0]], alone, rtol=1e-4
    )
    # 9 rows are two parts of five, the second padded by one row.
    split = [jnp.concatenate([g[:9], jnp.zeros((1, 8))]) for g in gradients]
    assert_close(
        [u[:9] for u in run(SMALL, split)[0]], run(SMALL, [g[:9] for g in gradients])[0], rtol=1e-4
    )


@pytest.mark.parametrize("scope", ["block", "parameter"])
def test_scanned_layers_are_the_layers_one_by_one(scope):
    settings = dataclasses.replace(SMALL, graft_scope=scope)
    gradients = randoms((3, 16, 8), 4)
    stacked, _ = run(settings, gradients)
    unstacked, _ = run(settings, [{str(i): g[i] for i in range(3)} for g in gradients])
    assert_close(stacked, [jnp.stack([u[str(i)] for i in range(3)]) for u in unstacked], rtol=1e-6)


@pytest.mark.parametrize("grafting", ["rmsprop", "adam", "sgd"])
def test_any_tree_goes(grafting):
    tree = {
        "scalar": jnp.ones(()),
        "vector": jnp.ones(5),
        "odd": jnp.ones((3, 1)),
        "matrix": jnp.ones((9, 17)),
        "conv": jnp.ones((2, 3, 4, 5)),
        "half": jnp.ones((4, 4), jnp.bfloat16),
        "empty": {},
        "nothing": jnp.ones((0, 4)),
    }
    settings = dataclasses.replace(SMALL, grafting=grafting)
    updates, state = run(settings, [tree] * 3)
    for update in updates:
        jax.tree.map(
            lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype) or pytest.fail("shape"),
            update,
            tree,
        )
        assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(update))
    assert int(state.failures) == 0 and scale_by_shampoo(settings).init({}).buckets == {}
    run(settings, [{}])
    # Without blocks the update is the grafting update.
    adam = optax.scale_by_adam(0.9, 0.9, eps=1e-8)
    ours, _ = run(settings, randoms((5,), 3))
    theirs, adam_state = [], adam.init(jnp.zeros(5))
    for gradient in randoms((5,), 3):
        update, adam_state = adam.update(gradient, adam_state)
        theirs.append(update)
    if grafting == "adam":
        assert_close(ours, theirs, rtol=1e-5)


def test_a_long_axis_takes_the_grafting_update_or_one_side():
    gradients = randoms((40, 8), 6)
    settings = dataclasses.replace(SMALL, max_dim=16)
    grafted, state = run(settings, gradients)
    assert not state.buckets and list(state.rest.nu) == [""]
    one_sided, state = run(dataclasses.replace(settings, beyond_max_dim="one_sided"), gradients)
    assert list(state.buckets) == ["40x8_R"] and list(state.buckets["40x8_R"].roots) == ["R"]
    g = np.float64(np.stack(gradients))
    R = sum(0.1 * 0.9 ** (5 - t) * g[t].T @ g[t] for t in range(6))
    values, vectors = np.linalg.eigh(R)
    u = g[5] @ (vectors * (values + 1e-6 * values[-1]) ** -0.5 @ vectors.T)
    assert_close(one_sided[5], u * np.linalg.norm(grafted[5]) / np.linalg.norm(u), rtol=1e-4)


def test_staggered_blocks_take_turns_and_equal_every_k_for_k_of_one():
    gradients = randoms((8, 40), 7)
    every = dataclasses.replace(SMALL, precondition_every=3, start_step=3)
    staggered = dataclasses.replace(every, staggered=True)
    _, state = run(staggered, gradients)
    # Block i was last refreshed in the last step t <= 6 with t = i (mod 3).
    assert state.buckets["8x8"].age[:5].tolist() == [(6 - i) % 3 for i in range(5)]
    one = dataclasses.replace(SMALL, precondition_every=1)
    assert_close(
        run(dataclasses.replace(one, staggered=True), gradients)[0],
        run(one, gradients)[0],
        rtol=1e-6,
    )
    # A block that every-k and staggered refresh in the same steps has the same updates.
    assert_close(
        [u[:, :8] for u in run(staggered, gradients)[0]],
        [u[:, :8] for u in run(every, gradients)[0]],
        rtol=1e-6,
    )


def test_a_block_whose_gradient_is_not_finite_stands_still_and_is_counted():
    gradients = randoms((16, 8), 6)
    healthy, _ = run(SMALL, gradients)
    for bad in (jnp.nan, jnp.inf, 1e30):  # The square of the last overflows.
        broken = [g.at[9, 2].set(bad) if t == 3 else g for t, g in enumerate(gradients)]
        updates, state = run(SMALL, broken)
        assert all(bool(jnp.all(jnp.isfinite(u))) for u in updates)
        assert bool(jnp.all(updates[3][8:] == 0)) and bool(jnp.any(updates[4][8:] != 0))
        assert_close([u[:8] for u in updates], [u[:8] for u in healthy], rtol=1e-6)
        assert state.buckets["8x8"].failures[:2].tolist() == [0, 1]
        assert float(optim.diagnostics((state,))["shampoo_failures"]) == 1
    vectors, state = run(SMALL, [{"v": jnp.array([1.0, jnp.nan])}, {"v": jnp.ones(2)}])
    assert float(jnp.abs(vectors[0]["v"]).max()) == 0 and int(state.failures) == 1
    assert bool(jnp.all(jnp.isfinite(vectors[1]["v"]))) and bool(jnp.all(vectors[1]["v"] != 0))


def test_a_block_without_gradient_stays_finite_for_three_thousand_steps():
    transform = scale_by_shampoo(dataclasses.replace(SMALL, precondition_every=10))
    gradient = jnp.zeros((16, 8)).at[:8].set(randoms((8, 8), 1)[0])
    # The first block has a gradient for ten steps, then none; the second never has one.
    step = lambda state, t: (transform.update(jnp.where(t < 10, gradient, 0.0), state)[1], None)
    state, _ = jax.jit(lambda state: jax.lax.scan(step, state, jnp.arange(3000)))(
        transform.init(gradient)
    )
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(state))
    block = state.buckets["8x8"]
    assert block.failures[:2].tolist() == [0, 0] and int(block.age[1]) == -1
    update, state = transform.update(gradient + 1.0, state)
    assert bool(jnp.all(jnp.isfinite(update))) and bool(jnp.all(update[8:] != 0))


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("rank", [1, 3, 12])
@pytest.mark.parametrize("method", ["newton", "eigh"])
def test_roots_of_any_rank_and_scale_converge(method, rank, scale):
    """Newton's error first grows where the rank is low: to stop there would leave the root 96 %
    off.
    """
    x = np.random.default_rng(rank).normal(size=(3, 12, rank))
    a = x @ x.swapaxes(1, 2) * scale
    root, residual, is_zero = jax.jit(
        functools.partial(optim.inverse_pth_root, p=4, epsilon=1e-4, method=method)
    )(jnp.asarray(a, jnp.float32))
    values, vectors = np.linalg.eigh(np.float64(jnp.asarray(a, jnp.float32)))
    powers = (np.maximum(values, 0) + 1e-4 * values[:, -1:]) ** -0.25
    expected = vectors * powers[:, None, :] @ vectors.swapaxes(1, 2)
    assert not bool(is_zero.any()) and float(residual.max()) < 1e-3
    assert_close(root, expected, rtol=1e-3)


def test_a_root_that_is_no_good_leaves_the_old_one():
    gradients = randoms((8, 8), 2)
    settings = dataclasses.replace(SMALL, epsilon=1e-4)
    _, state = run(settings, gradients)
    bad = state.buckets["8x8"]
    indefinite = jnp.diag(jnp.array([1.0, -1.0] * 4)) * 1e6
    statistics = {"L": bad.statistics["L"].at[0].set(indefinite), "R": bad.statistics["R"]}
    state = state._replace(buckets={"8x8": bad._replace(statistics=statistics)})
    updates, after = run(settings, gradients[:1], state=state)
    assert int(after.buckets["8x8"].failures[0]) == 1 and int(after.buckets["8x8"].age[0]) == 1
    assert bool(jnp.all(after.buckets["8x8"].roots["L"] == bad.roots["L"]))
    assert bool(jnp.all(jnp.isfinite(updates[0])))


TREE = {"a": (24, 40), "b": (3, 16, 16), "c": (5,), "d": (50, 8)}


def tree_of(seed):
    return {
        name: randoms(shape, 1, seed=seed + i)[0] for i, (name, shape) in enumerate(TREE.items())
    }


@pytest.mark.parametrize(
    "settings", [{}, {"staggered": True}, {"graft_scope": "parameter"}], ids=str
)
@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 2, 2)], ids=str)
def test_eight_devices_give_the_updates_of_one(sizes, settings):
    settings = dataclasses.replace(SMALL, precondition_every=3, **settings)
    gradients = [tree_of(seed) for seed in range(6)]
    one, _ = run(settings, gradients)
    mesh = make_mesh(sizes)
    state = scale_by_shampoo(settings).init(gradients[0])
    shardings = optim.state_shardings(
        state, gradients[0], jax.tree.map(lambda _: NamedSharding(mesh, P()), TREE_), mesh
    )
    placed = jax.device_put(state, shardings)
    many, after = run(settings, gradients, mesh=mesh, state=placed)
    assert_close(many, one, rtol=1e-5)
    statistics = after.buckets["8x8"].statistics["L"]
    assert statistics.sharding.shard_shape(statistics.shape)[0] == statistics.shape[0] // 8


TREE_ = {name: jnp.zeros(shape) for name, shape in TREE.items()}


def compile_update(mesh, root="newton"):
    """Two weights of 16 blocks, split over fsdp as training has them."""
    settings = Shampoo(block_size=32, root=root)
    transform = scale_by_shampoo(settings, mesh=mesh)
    place = lambda spec, shape: jax.ShapeDtypeStruct(
        shape, jnp.float32, sharding=NamedSharding(mesh, spec)
    )
    gradients = {"a": place(P("fsdp"), (128, 128)), "b": place(P(None, "fsdp"), (4, 64, 64))}
    state = jax.eval_shape(transform.init, gradients)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, gradients)
    placed = optim.state_shardings(state, gradients, shardings, mesh)
    state = jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, placed
    )
    return (
        jax.jit(transform.update, out_shardings=(shardings, placed))
        .lower(gradients, state)
        .compile()
    )


def check_distribution(eight, one):
    """Each device does its share, and what crosses is whole gradients in and whole updates out."""
    # XLA counts the body of a loop once, for one device and for eight.
    assert eight.cost_analysis()["flops"] <= one.cost_analysis()["flops"] / 6
    assert (
        eight.memory_analysis().argument_size_in_bytes
        <= one.memory_analysis().argument_size_in_bytes / 6
    )
    found = [(c.kind, c.in_loop) for c in collectives(eight.as_text())]
    assert {kind for kind, _ in found} == {"all-gather"} and not any(
        in_loop for _, in_loop in found
    )
    assert len(found) <= 3  # Two gradients and one bucket's updates; XLA may join the first two.


def test_the_work_is_shared_and_only_gradients_and_updates_are_gathered():
    check_distribution(compile_update(make_mesh((1, 8, 1))), compile_update(make_mesh((1, 1, 1))))


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (extra: tpu)"
)
@pytest.mark.parametrize("sizes", [(1, 8, 1), (2, 2, 2)], ids=str)
def test_the_work_is_shared_on_a_tpu(sizes, tpu_mesh):
    check_distribution(compile_update(tpu_mesh(sizes)), compile_update(tpu_mesh((1, 1, 1))))


def test_the_state_of_a_small_model_has_the_size_that_is_promised():
    """2.88 M parameters: an embedding, and layers of 12 d² weights at d = 128 with a
    d_ff of 512.
    """
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    tree = {
        "embed": shape(10000, 128),
        "qkv": shape(8, 3, 128, 128),
        "out": shape(8, 128, 128),
        "w_in": shape(8, 128, 512),
        "w_out": shape(8, 512, 128),
    }
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(tree)) == 2_852_864
    state = jax.eval_shape(scale_by_shampoo(Shampoo(block_size=128)).init, tree)
    size = sum(
        x.size * x.dtype.itemsize
        for b in state.buckets.values()
        for x in jax.tree.leaves((b.statistics, b.roots))
    )
    assert size <= 46 * 2**20


def test_blocks_of_a_bucket_are_cut_and_joined_without_loss():
    leaves = [
        jnp.arange(n, dtype=jnp.float32).reshape(shape) + 1
        for shape, n in (((2, 9, 13), 234), ((13, 7), 91))
    ]
    views = [MatrixView((2,), (1,), (4,), (5,)), MatrixView((0,), (1,), (4, 12), (3,))]
    blocking = Shampoo(block_size=3).blocking(leaves, views)
    blocks = {name: blocking.cut(name, leaves) for name in blocking.buckets}
    joined = blocking.join(blocks)
    for i, leaf in enumerate(leaves):
        assert bool(jnp.all(joined[i] == leaf))
    for name, bucket in blocking.buckets.items():
        assert blocks[name].shape == (bucket.size, *bucket.shape) and bucket.size % 8 == 0
        assert max(bucket.shape) <= 3
    # No number stands in two blocks, and no block crosses a boundary.
    numbers = jnp.concatenate([x.reshape(-1) for x in blocks.values()])
    assert int((numbers > 0).sum()) == 234 + 91
