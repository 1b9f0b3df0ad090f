import dataclasses
import importlib.util
import pathlib
import warnings

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from matta_jax.config import ShampooConfig
from matta_jax.optim import MatrixView, scale_by_shampoo

SMALL = ShampooConfig(block_size=8, precondition_every=1, start_step=0, beta2=0.9)


def equal_parts(length, block_size):
    size = -(-length // -(-length // block_size))
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


def inverse_fourth_root(matrix, epsilon):
    values, vectors = np.linalg.eigh(matrix)
    powers = (np.maximum(values, 0) + epsilon * values[-1]) ** -0.25
    return vectors * powers @ vectors.T


class ReferenceBlock:
    """One block in float64 numpy: eigendecompositions, and norms of its own."""

    def __init__(self, settings):
        self.settings = settings
        self.L, self.R, self.nu = 0, 0, 0
        self.roots = None

    def update(self, gradient, t):
        """The update of step t."""
        g = np.float64(gradient)
        beta2, epsilon = self.settings.beta2, self.settings.epsilon
        self.L = beta2 * self.L + (1 - beta2) * g @ g.T
        self.R = beta2 * self.R + (1 - beta2) * g.T @ g
        self.nu = beta2 * self.nu + (1 - beta2) * g**2
        if t % self.settings.precondition_every == 0:
            self.roots = inverse_fourth_root(self.L, epsilon), inverse_fourth_root(self.R, epsilon)

        graft = g / (np.sqrt(self.nu / (1 - beta2 ** (t + 1))) + 1e-8)
        update = graft
        if t >= self.settings.start_step:
            update = self.roots[0] @ g @ self.roots[1]
        return update * np.linalg.norm(graft) / np.linalg.norm(update)


def reference(settings, gradients):
    """The updates of one matrix in float64 numpy, in parts of equal size."""
    num_rows, num_columns = gradients[0].shape
    blocks = {}
    for rows in equal_parts(num_rows, settings.block_size):
        for columns in equal_parts(num_columns, settings.block_size):
            blocks[rows.start, columns.start] = (rows, columns, ReferenceBlock(settings))

    updates = []
    for t, gradient in enumerate(gradients):
        update = np.zeros((num_rows, num_columns))
        for rows, columns, block in blocks.values():
            update[rows, columns] = block.update(gradient[rows, columns], t)
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
def test_updates_are_those_of_a_float64_reference_over_25_steps(
    every, start, block, method, apply_shampoo, random_gradients, assert_close
):
    settings = dataclasses.replace(
        SMALL,
        precondition_every=every,
        start_step=start,
        block_size=block,
        root=method,
        epsilon=1e-3,
    )
    gradients = random_gradients((16, 11), 25)
    updates, state = apply_shampoo(settings, gradients)
    assert_close(updates, reference(settings, gradients), rtol=5e-6 if every == 1 else 1e-3)
    for blocks in state.buckets.values():
        assert int(blocks.failures.sum()) == 0 and float(blocks.residual.max()) < 1e-4


PRECONDITION = importlib.util.find_spec("precondition") is not None


@pytest.mark.skipif(not PRECONDITION, reason="precondition-opt is not installed (extra: test)")
@pytest.mark.parametrize("every", [1, 4])
def test_agrees_with_the_public_distributed_shampoo(
    every, monkeypatch, apply_shampoo, random_gradients, assert_close
):
    """The oracle starts its statistics at ε I, grafts per parameter, and has its own power
    iteration.
    """
    gradients = random_gradients((16, 8), 12)
    # Removed from jax since its release.
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
        params, expected = jnp.zeros((16, 8)), []
        state = oracle.init(params)
        step = jax.jit(oracle.update)
        for gradient in gradients:
            update, state = step(gradient, state, params)
            expected.append(-update)

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
    updates, _ = apply_shampoo(settings, gradients, state=state)
    assert_close(updates, expected, rtol=2e-5 if every == 1 else 1e-3)


def test_golden_updates(apply_shampoo, assert_close):
    """A file of `tests/optim/golden.py`: what changes these numbers changes everybody's runs."""
    golden = np.load(pathlib.Path(__file__).with_name("golden.npz"))
    gradients = [
        {"w": jnp.asarray(w), "b": jnp.asarray(b)}
        for w, b in zip(golden["w"], golden["b"], strict=True)
    ]
    settings = ShampooConfig(block_size=6, precondition_every=2, start_step=1, beta2=0.95)
    updates, _ = apply_shampoo(settings, gradients)
    # Early statistics have low rank, whose roots differ by 3e-4 between one CPU and another.
    assert_close([u["w"] for u in updates], list(golden["update_w"]), rtol=2e-3)
    assert_close([u["b"] for u in updates], list(golden["update_b"]), rtol=1e-5)


def test_the_default_settings_are_the_configs():
    params = {"w": jnp.zeros((200, 130)), "b": jnp.zeros(5)}
    default = jax.eval_shape(scale_by_shampoo().init, params)
    explicit = jax.eval_shape(scale_by_shampoo(ShampooConfig()).init, params)
    assert default == explicit


@pytest.fixture(scope="session")
def nest_difference(apply_shampoo, random_gradients):
    """`nest_difference(student, ta)`: largest relative difference between the Student's slice of
    the TA's update and the Student's own update; `student` and `ta` are the shapes of a matrix.
    """

    def difference(student, ta, *, aligned, scope="block", steps=4, block=4):
        rows, columns = student
        settings = dataclasses.replace(SMALL, block_size=block, graft_scope=scope)
        views = {"w": MatrixView((0,), (1,))}
        if aligned:
            views = {"w": MatrixView((0,), (1,), (rows,), (columns,))}

        ta_gradients = [{"w": g} for g in random_gradients(ta, steps, seed=sum(ta))]
        student_gradients = [{"w": g["w"][:rows, :columns]} for g in ta_gradients]
        ta_updates, _ = apply_shampoo(settings, ta_gradients, views=views)
        student_updates, _ = apply_shampoo(settings, student_gradients, views=views)

        differences, scales = [], []
        for a, b in zip(ta_updates, student_updates, strict=True):
            differences.append(float(jnp.abs(a["w"][:rows, :columns] - b["w"]).max()))
            scales.append(float(jnp.abs(b["w"]).max()))
        return max(differences) / max(scales)

    return difference


@hypothesis.settings(max_examples=5)
@hypothesis.given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    more_rows=st.integers(0, 7),
    more_columns=st.integers(1, 7),
)
def test_the_slice_of_the_tas_update_is_the_students_own(
    nest_difference, rows, columns, more_rows, more_columns
):
    ta = (rows + more_rows, columns + more_columns)
    assert nest_difference((rows, columns), ta, aligned=True) <= 1e-5


@pytest.mark.slow
def test_without_aligned_cuts_or_norms_per_block_it_is_not(nest_difference):
    assert nest_difference((6, 6), (8, 10), aligned=True) <= 1e-5
    assert nest_difference((6, 6), (8, 10), aligned=False) > 0.05
    assert nest_difference((6, 6), (8, 10), aligned=True, scope="parameter") > 1e-3


@pytest.mark.parametrize("scale", [1e-8, 1e-4, 1e4, 1e8])
def test_the_direction_does_not_depend_on_the_gradients_scale(
    scale, apply_shampoo, random_gradients, assert_close
):
    def directions(gradients):
        updates, _ = apply_shampoo(SMALL, gradients)
        return [update / jnp.linalg.norm(update) for update in updates]

    gradients = random_gradients((8, 8), 3)
    scaled = directions([g * scale for g in gradients])
    expected = directions(gradients)
    assert_close(scaled[1:], expected[1:], rtol=1e-5)
    # Statistics of a single gradient are ill-conditioned: rounding shows.
    assert_close(scaled, expected, rtol=1e-3)


def orthogonal(size, seed):
    matrix = np.random.default_rng(seed).normal(size=(size, size))
    return jnp.asarray(np.linalg.qr(matrix)[0], jnp.float32)


def test_one_block_is_equivariant_to_rotations_and_transposition(
    apply_shampoo, random_gradients, assert_close
):
    settings = dataclasses.replace(SMALL, grafting="sgd", epsilon=1e-4)
    gradients = [g / 10 for g in random_gradients((6, 8), 4)]
    updates, _ = apply_shampoo(settings, gradients)

    a, b = orthogonal(6, 1), orthogonal(8, 2)
    rotated, _ = apply_shampoo(settings, [a @ g @ b for g in gradients])
    assert_close(rotated, [a @ u @ b for u in updates], rtol=1e-4)

    transposed, _ = apply_shampoo(settings, [g.T for g in gradients])
    assert_close(transposed, [u.T for u in updates], rtol=1e-4)


def test_blocks_may_be_permuted_and_padding_changes_nothing(
    apply_shampoo, random_gradients, assert_close
):
    gradients = random_gradients((16, 8), 4)
    updates, _ = apply_shampoo(SMALL, gradients)

    def swap(x):
        return jnp.concatenate([x[8:], x[:8]])

    swapped, _ = apply_shampoo(SMALL, [swap(g) for g in gradients])
    assert_close(swapped, [swap(u) for u in updates], rtol=1e-5)

    padded, _ = apply_shampoo(SMALL, [jnp.pad(g[:6, :7], ((0, 2), (0, 1))) for g in gradients])
    unpadded, _ = apply_shampoo(SMALL, [g[:6, :7] for g in gradients])
    assert_close([u[:6, :7] for u in padded], unpadded, rtol=1e-4)

    # 9 rows are two parts of five, the second padded by one row.
    padded, _ = apply_shampoo(
        SMALL, [jnp.concatenate([g[:9], jnp.zeros((1, 8))]) for g in gradients]
    )
    unpadded, _ = apply_shampoo(SMALL, [g[:9] for g in gradients])
    assert_close([u[:9] for u in padded], unpadded, rtol=1e-4)


@pytest.mark.parametrize("scope", ["block", "parameter"])
def test_scanned_layers_are_the_layers_one_by_one(
    scope, apply_shampoo, random_gradients, assert_close
):
    settings = dataclasses.replace(SMALL, graft_scope=scope)
    gradients = random_gradients((3, 16, 8), 4)
    stacked, _ = apply_shampoo(settings, gradients)

    layers = [{str(i): g[i] for i in range(3)} for g in gradients]
    unstacked, _ = apply_shampoo(settings, layers)
    expected = [jnp.stack([u[str(i)] for i in range(3)]) for u in unstacked]
    assert_close(stacked, expected, rtol=1e-6)


def test_a_long_axis_takes_the_grafting_update_or_one_side(
    apply_shampoo, random_gradients, assert_close
):
    gradients = random_gradients((40, 8), 6)
    settings = dataclasses.replace(SMALL, max_dim=16)
    grafted, state = apply_shampoo(settings, gradients)
    assert not state.buckets and list(state.rest.nu) == [""]

    settings = dataclasses.replace(settings, beyond_max_dim="one_sided")
    one_sided, state = apply_shampoo(settings, gradients)
    assert list(state.buckets) == ["40x8_R"] and list(state.buckets["40x8_R"].roots) == ["R"]

    g = np.float64(np.stack(gradients))
    R = sum(0.1 * 0.9 ** (5 - t) * g[t].T @ g[t] for t in range(6))
    values, vectors = np.linalg.eigh(R)
    update = g[5] @ (vectors * (values + 1e-6 * values[-1]) ** -0.5 @ vectors.T)
    expected = update * np.linalg.norm(grafted[5]) / np.linalg.norm(update)
    assert_close(one_sided[5], expected, rtol=1e-4)
