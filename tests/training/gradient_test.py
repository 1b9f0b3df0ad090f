"""The gradient of a step: of microbatches and devices as of one device."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from matta_jax.sharding import collectives, make_mesh, place_batch
from matta_jax.training import compile_step, make_eval_step, make_setup
from matta_jax.training._gradient import make_gradient, rows_of
from matta_jax.training._loss import Draws
from matta_jax.training._step import trained_members

# Heads and granules that two devices divide.
NESTED = {
    "model__num_layers": 2,
    "model__d_model": 32,
    "model__num_heads": 2,
    "model__d_ff": 64,
    "nest__num_layers": 2,
    "nest__d_model": 32,
    "nest__num_heads": 2,
    "nest__d_ff": 128,
    "nest__widths": [64, 128],
    "data__batch_size": 16,
    "mesh__data": -1,
}


def gradient_of(config, sizes, **arrays):
    """Metrics and gradient of a step with a random mix, of rows of several lengths, and of other
    arrays of the batch.
    """
    setup = make_setup(config, make_mesh(sizes))
    generator = np.random.default_rng(0)
    length = generator.integers(8, 33, 16).astype(np.int32)
    batch = {"tokens": generator.integers(0, 256, (16, 33), np.int32), "length": length, **arrays}
    num_layers = setup.nest.num_layers
    choice_ML = jnp.arange(num_layers)[None] % len(setup.nest.layer_options)
    draws = Draws(choice_ML, jax.random.key(0), jnp.float32(0.5), jnp.float32(length.sum()))
    run = jax.jit(make_gradient(setup, trained_members(setup), 1))
    metrics, gradient = run(setup.init().params, place_batch(batch, setup.mesh), draws)
    return {name: float(value) for name, value in metrics.items()}, jax.device_get(gradient)


@pytest.fixture(scope="module")
def expected(tiny):
    return gradient_of(tiny(**NESTED), (1, 1, 1))


@pytest.mark.parametrize(
    ("sizes", "gather", "microbatches"),
    [
        pytest.param((2, 4, 1), "step", 2, marks=pytest.mark.slow),
        pytest.param((2, 4, 1), "microbatch", 2, marks=pytest.mark.slow),
        pytest.param((1, 8, 1), "microbatch", 2, marks=pytest.mark.slow),
        pytest.param((8, 1, 1), "microbatch", 2, marks=pytest.mark.slow),
        pytest.param((8, 1, 1), "microbatch", 1, marks=pytest.mark.slow),
        pytest.param((8, 1, 1), "step", 2, marks=pytest.mark.slow),
        pytest.param((1, 8, 1), "step", 1, marks=pytest.mark.slow),
        pytest.param((2, 2, 2), "step", 2, marks=pytest.mark.slow),
        pytest.param((2, 2, 2), "microbatch", 2, marks=pytest.mark.slow),
        pytest.param((1, 4, 2), "microbatch", 1, marks=pytest.mark.slow),
        ((1, 2, 1, 4), "microbatch", 2),
        pytest.param((1, 1, 1, 8), "step", 1, marks=pytest.mark.slow),
        pytest.param((2, 1, 2, 2), "microbatch", 2, marks=pytest.mark.slow),
    ],
)
def test_metrics_and_gradient_are_those_of_one_device(tiny, expected, sizes, gather, microbatches):
    config = tiny(**NESTED, train__gather=gather, train__microbatches=microbatches)
    metrics, gradient = gradient_of(config, sizes)
    assert metrics == pytest.approx(expected[0], rel=1e-5, abs=1e-6)
    for summed, whole in zip(*map(jax.tree.leaves, (gradient, expected[1])), strict=True):
        np.testing.assert_allclose(summed, whole, atol=2e-6 * np.abs(whole).max() + 1e-9)


@pytest.mark.slow
def test_models_that_are_computed_again_add_up_on_devices_too(tiny, expected):
    config = tiny(**NESTED, model__remat="ta", train__microbatches=2)
    metrics, gradient = gradient_of(config, (2, 4, 1))
    assert metrics == pytest.approx(expected[0], rel=1e-5, abs=1e-6)
    for summed, whole in zip(*map(jax.tree.leaves, (gradient, expected[1])), strict=True):
        np.testing.assert_allclose(summed, whole, atol=2e-6 * np.abs(whole).max() + 1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt", "llama"])
def test_devices_that_share_windows_know_documents_and_labels_of_a_teacher(tiny, family):
    """Documents end within a stretch, and between two."""
    fields = NESTED | {"model__name": family}
    fields |= {"teacher__labels": "labels", "teacher__student_weight": 0.5}
    if family == "llama":
        fields |= {"model__num_kv_heads": 2, "model__window": 5, "model__window_pattern": 2}
        fields |= {"nest__num_heads": None}
    generator = np.random.default_rng(1)
    ends = np.array([3, 4, 16, 21])[:, None] + generator.integers(0, 3, 16)
    probs = generator.dirichlet(np.ones(5), (16, 32)).astype(np.float32)
    arrays = {
        "documents": (np.arange(32) >= ends[..., None]).sum(0).astype(np.int32),
        "teacher_ids": generator.integers(0, 256, (16, 32, 4), np.int32),
        "teacher_log_probs": np.log(probs[..., :4]),
        "teacher_tail": np.log(probs[..., 4]),
    }
    config = tiny(**fields)
    metrics, gradient = gradient_of(config, (1, 2, 1, 4), **arrays)
    expected_metrics, expected = gradient_of(config, (1, 1, 1), **arrays)
    assert metrics == pytest.approx(expected_metrics, rel=1e-5, abs=1e-6)
    assert any("teacher" in name for name in metrics)
    for summed, whole in zip(*map(jax.tree.leaves, (gradient, expected)), strict=True):
        np.testing.assert_allclose(summed, whole, atol=2e-6 * np.abs(whole).max() + 1e-9)


@pytest.mark.parametrize(
    "sizes", [(1, 2, 1, 4), pytest.param((2, 1, 2, 2), marks=pytest.mark.slow)]
)
def test_devices_that_share_windows_evaluate_their_positions(tiny, sizes):
    """Documents, and rows of several lengths."""
    config = tiny(**NESTED)
    generator = np.random.default_rng(0)
    batch = {
        "tokens": generator.integers(0, 256, (16, 33), np.int32),
        "length": generator.integers(8, 33, 16).astype(np.int32),
        "documents": (np.arange(32) >= generator.integers(3, 30, (16, 1))).astype(np.int32),
    }

    def evaluated(sizes):
        setup = make_setup(config, make_mesh(sizes))
        placed = place_batch(batch, setup.mesh)
        program = make_eval_step(setup).lower(setup.abstract.params, placed).compile()
        sums = program(setup.init().params, placed)
        memory = program.memory_analysis().temp_size_in_bytes
        return {name: float(value) for name, value in sums.items()}, memory

    sums, memory = evaluated(sizes)
    expected, of_whole_windows = evaluated(sizes[:3])
    assert sums == pytest.approx(expected, rel=1e-5)
    assert sums["targets"] == batch["length"].sum()
    assert memory < 0.7 * of_whole_windows


@pytest.mark.slow
def test_weights_beside_the_layers_come_together_once(tiny):
    """Whole ones are not gathered again by a pass, which would cut the surplus off unseen."""
    setup = make_setup(tiny(**NESTED), make_mesh((1, 8, 1)))
    gathers = [
        each for each in collectives(compile_step(setup).as_text()) if each.kind == "all-gather"
    ]
    weights = jax.tree.leaves(setup.abstract.params)
    largest = max(math.prod(shape) for each in gathers for shape in each.shapes)
    assert largest == max(weight.size for weight in weights)


@pytest.mark.slow
def test_what_data_parallel_devices_add_up_crosses_once_for_all_microbatches(tiny):
    config = tiny(**NESTED, train__microbatches=2)
    setup = make_setup(config, make_mesh((8, 1, 1)))
    sums = collectives(compile_step(setup).as_text())
    assert not any(each.in_loop for each in sums)
    weights = sum(4 * weight.size for weight in jax.tree.leaves(setup.abstract.params))
    assert weights <= sum(each.bytes for each in sums) < 1.01 * weights


def test_who_needs_all_rows_has_them(tiny, embedder):
    """Similarities to other texts, and the masks of dropout."""

    def has_rows(config, sizes=(2, 2, 2)):
        return rows_of(make_setup(config, make_mesh(sizes))) is not None

    assert has_rows(tiny(**NESTED)) and has_rows(tiny(**NESTED), (1, 8, 1))
    assert not has_rows(tiny(**NESTED), (1, 1, 2))
    assert not has_rows(tiny(**NESTED, model__dropout=0.1))
    assert not has_rows(embedder(), (2, 4, 1))
