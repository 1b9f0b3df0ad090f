"""What cannot fit is refused before it is allocated."""

import jax
import pytest

from matta_jax.errors import UserError
from matta_jax.sharding import make_mesh
from matta_jax.training import _memory, make_setup


@pytest.fixture(scope="module")
def setup(tiny):
    return make_setup(tiny(), make_mesh((1, 1, 1)))


def test_the_need_is_that_of_weights_gradient_moments_and_activations(setup):
    config, ta = setup.config, setup.nest.ta
    parameters = setup.plan.count(ta).parameters
    need = _memory.least_need(setup)
    # AdamW has two moments of each weight, and a few counters.
    assert 16 * parameters <= need.state <= 16 * parameters + 64
    tokens = config.data.batch_size * config.data.seq_len
    assert need.activations == 4 * tokens * (sum(ta.along("d_model")) + sum(ta.along("d_ff")))


def test_microbatches_devices_and_remat_lower_it(tiny, setup):
    need = _memory.least_need(setup)
    halved = make_setup(tiny(train__microbatches=2, model__remat="full"), make_mesh((1, 2, 1)))
    assert _memory.least_need(halved).activations < need.activations / 4
    assert _memory.least_need(halved).state < need.state


@pytest.mark.parametrize(
    ("share", "words"),
    [(0.5, ["of weights", "model.*", "mesh.fsdp"]), (1.01, ["data.batch_size"])],
)
def test_a_run_that_cannot_fit_is_refused_with_what_mends_it(setup, share, words, monkeypatch):
    need = _memory.least_need(setup)
    assert need.activations > need.state / 50
    monkeypatch.setattr(_memory, "device_memory", lambda mesh: int(share * need.state))
    with pytest.raises(UserError) as error:
        _memory.check_memory(setup)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("there", [None, 10**12])
def test_what_may_fit_is_let_pass(setup, there, monkeypatch):
    monkeypatch.setattr(_memory, "device_memory", lambda mesh: there)
    _memory.check_memory(setup)


def test_the_machine_is_shared_by_its_devices(setup):
    one = _memory.device_memory(setup.mesh)
    assert one > 10**8
    assert _memory.device_memory(make_mesh((1, 2, 1))) == one // 2
    assert jax.local_devices()[0].platform == "cpu"
