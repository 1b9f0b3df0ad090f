"""Milliseconds are predicted, measured and kept."""

import pytest

from matta_jax import nesting, search
from matta_jax.errors import UserError
from matta_jax.selection import Budget, Workload, _latency, _space


@pytest.fixture
def fake_clock(monkeypatch):
    """A device on which a layer takes 1 ms for each 16 neurons and all else 2 ms; `slow` is added
    to whole models.
    """
    slow = {"ms": 0.0}

    def measure(architecture, workload, schema):
        assert schema is not None
        added = slow["ms"] if architecture.num_layers == 3 else 0.0
        return 2.0 + sum(architecture.along("d_ff")) / 16 + added

    monkeypatch.setattr(_latency, "measure_ms", measure)
    return slow


def test_latency_is_a_sum_over_layers_and_limits_the_pick(
    run, source, output, fake_clock, one_family
):
    model = _latency.LatencyModel(source, Workload())
    space = _space.make_space(source.nest)
    for spec in ("d_ff=16,48,32", "student"):
        sub_model = nesting.parse_spec(spec, source.nest)
        predicted = model.predicted(space.group_of(sub_model), sub_model)
        assert predicted == pytest.approx(model.measured(sub_model))
    result = search(str(run[1]), output, budget=Budget(max_ms=7.5), method="additive", **one_family)
    assert result.pick.ms == pytest.approx(result.pick.predicted_ms)
    assert result.pick.ms <= 7.5
    assert any("Latency model: off by 0%" in note for note in result.notes)


def test_a_latency_that_is_not_kept_when_measured_is_refused(run, output, fake_clock, one_family):
    fake_clock["ms"] = 10.0
    with pytest.raises(
        UserError,
        match=r"max_ms=7.5 is kept by none of the verified models: the fastest took 15 ms",
    ):
        search(str(run[1]), output, budget=Budget(max_ms=7.5), **one_family)


@pytest.mark.parametrize("mode", ["prefill", "decode"])
def test_real_models_are_timed(source, mode):
    architecture = source.architecture_of(source.nest.student)
    assert 0 < _latency.measure_ms(architecture, Workload(mode, batch_size=2, length=16)) < 1e4
    with pytest.raises(UserError, match="latency_length=64 must be at most model.max_len=32"):
        _latency.measure_ms(architecture, Workload(mode, length=64))
