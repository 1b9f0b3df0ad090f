"""What benchmarks share: the step of size S, and the peer that replaces its forward pass."""

import pathlib

import jax
import numpy as np
import pytest

from matta_jax import config as c
from matta_jax.sharding import make_mesh
from matta_jax.training import TrainState, make_setup, step_loss

FOLDER = pathlib.Path(__file__).parents[3] / "experiments" / "benchmarks"


@pytest.fixture
def joint_step(load, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return load("joint_step")


@pytest.fixture
def setup(joint_step):
    """Size S in miniature, with a mix of three widths."""
    small = {
        "model.vocab_size": 32,
        "model.d_model": 16,
        "model.num_heads": 2,
        "model.d_ff": 16,
        "model.max_len": 8,
        "nest.d_ff": 64,
        "nest.widths": (16, 32, 64),
        "data.seq_len": 8,
        "data.batch_size": 2,
    }
    config = joint_step.size_s(num_layers=3, mixes=1, widths=(1024, 2048))
    return make_setup(c.override(config, small), make_mesh((1, 1, 1)))


@pytest.mark.slow
def test_the_unrolled_peer_has_the_losses_of_the_step(joint_step, setup):
    batch = joint_step.random_batch(setup)
    peer = joint_step.unroll(setup)
    assert sorted(peer.abstract.params["blocks"]) == ["0", "1", "2"]

    params = joint_step.layers_apart(setup.init().params)
    unrolled_state = TrainState(setup.init().step, params, peer.optimizer.init(params))
    programs = {
        "scan": (joint_step.lower_step(setup).compile(), setup.init()),
        "unrolled": (joint_step.lower_step(peer, unrolled=True).compile(), unrolled_state),
    }
    losses = {}
    for name, (program, state) in programs.items():
        step = joint_step.stepper(program, state, batch)
        losses[name] = [jax.device_get(step()) for _ in range(2)]

    for scanned, unrolled in zip(losses["scan"], losses["unrolled"], strict=True):
        for name in ("student", "ta", "distill", "mix_0", "mix_0_distill", "grad_norm"):
            np.testing.assert_allclose(unrolled[name], scanned[name], rtol=1e-4)


def test_a_forward_pass_that_no_step_calls_is_refused(joint_step, setup, monkeypatch):
    with (
        pytest.raises(RuntimeError, match="traced no step with its joint_apply"),
        joint_step.replace_forward(joint_step.unrolled_apply),
    ):
        pass

    monkeypatch.delattr(f"{step_loss.__module__}.joint_apply")
    with pytest.raises(AttributeError, match="joint_apply"):
        joint_step.lower_step(setup, unrolled=True)
