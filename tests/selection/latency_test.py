"""Milliseconds are predicted, measured and kept."""

import itertools

import pytest

from matta_jax import nesting, search
from matta_jax.errors import UserError
from matta_jax.packages import Timing
from matta_jax.selection import Budget, Workload, _jax_clock, _latency, _space


@pytest.fixture
def fake_clock(monkeypatch):
    """A device on which a layer takes 1 ms for each 16 neurons and all else 2 ms; `slow` is added
    to whole models.
    """
    slow = {"ms": 0.0}

    def measure(architecture, workload, schema):
        assert schema is not None
        added = slow["ms"] if architecture.num_layers == 3 else 0.0
        return Timing(2.0 + sum(architecture.along("d_ff")) / 16 + added, 0.1, 5)

    monkeypatch.setattr(_jax_clock, "measure", measure)
    return slow


def _timed(model, space, sub_model):
    [timing] = model.measured([(space.group_of(sub_model), sub_model)])
    return timing.ms


def test_latency_is_a_sum_over_layers_and_limits_the_pick(
    run, source, output, fake_clock, one_family
):
    model = _latency.LatencyModel(source, _jax_clock.JaxClock(source, Workload()))
    space = _space.make_space(source.nest)
    for spec in ("d_ff=16,48,32", "student"):
        sub_model = nesting.parse_spec(spec, source.nest)
        predicted = model.predicted(space.group_of(sub_model), sub_model)
        assert predicted == pytest.approx(_timed(model, space, sub_model))
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


class FakeClock:
    """Layers take a millisecond for each 16 neurons and all else 2, times a factor."""

    workload, about = Workload(), {"name": "fake", "version": "1"}

    takes_turns = True

    def __init__(self, source, factors=(1.0,), pads_layers=False):
        self.source, self.factors, self.pads_layers = source, factors, pads_layers
        self.asked = []

    def times(self, probes, sub_models):
        architectures = [*probes, *map(self.source.architecture_of, sub_models)]
        self.asked.append(architectures)
        times = [2.0 + sum(model.along("d_ff")) / 16 for model in architectures]
        factors = itertools.cycle(self.factors)
        return [Timing(ms * factor, 0.0, 5) for ms, factor in zip(times, factors, strict=False)]


def test_a_group_is_timed_once_at_few_layers_and_at_all(source):
    clock = FakeClock(source)
    model = _latency.LatencyModel(source, clock)
    space = _space.make_space(source.nest, d_model=24, num_heads=3)
    for group in space.groups:
        base, layers = model.linear(group)
        assert base == pytest.approx(2.0) and layers == pytest.approx([1.0, 2.0, 3.0])
    assert len(space.groups) == 2 and len(clock.asked) == 1
    depths = [(model.num_layers, model.along("d_ff")[0]) for model in clock.asked[0]]
    assert depths == [(2, 16), (4, 16), (2, 32), (4, 32), (2, 48), (4, 48)]


def test_no_part_of_a_time_is_negative(source):
    """Whatever noise says: deep models that seem to be faster than others."""
    [group] = _space.make_space(source.nest, layers=3, d_model=24, num_heads=3).groups
    model = _latency.LatencyModel(source, FakeClock(source, factors=(1.0, 0.3, 1.0, 1.0, 1.0, 2.0)))
    base, layers = model.linear(group)
    assert base >= 0 and all(layer >= 0 for layer in layers)
    assert model.predicted(group, group.uniform({"d_ff": 48})) > 0
    # A clock that is too coarse says 0.
    model = _latency.LatencyModel(source, FakeClock(source, factors=(0.0,)))
    assert model.predicted(group, group.uniform({"d_ff": 48})) == pytest.approx(0.0, abs=1e-5)


def test_a_padded_mix_takes_the_time_of_its_widest_layer(source):
    [group] = _space.make_space(source.nest, layers=3, d_model=24, num_heads=3).groups
    mix = nesting.parse_spec("d_ff=16,32,16", source.nest)
    true = _latency.LatencyModel(source, FakeClock(source)).predicted(group, mix)
    padded = _latency.LatencyModel(source, FakeClock(source, pads_layers=True)).predicted(
        group, mix
    )
    assert (true, padded) == (pytest.approx(2 + 4), pytest.approx(2 + 6))


def test_predictions_are_fitted_anew_to_what_is_timed_in_turn(source):
    """A machine that is three times as slow as at first."""
    space = _space.make_space(source.nest, d_model=24)
    clock = FakeClock(source)
    model = _latency.LatencyModel(source, clock)
    models = []
    for heads in (2, 3, 2):
        [group] = [
            group
            for group in space.groups
            if group.sizes["heads"] == heads and len(group.layers) == 3
        ]
        models.append((group, group.member([{"d_ff": size} for size in (16, 48, 32)])))
        assert model.predicted(*models[-1]) == pytest.approx(8.0)
    clock.asked.clear()
    clock.factors = (3.0,)
    assert [timing.ms for timing in model.measured(models)] == [pytest.approx(24.0)] * 3
    assert [model.predicted(*pair) for pair in models] == [pytest.approx(24.0)] * 3
    # In one call, with the probes of each group once.
    assert [len(architectures) for architectures in clock.asked] == [2 * 6 + 3]

    # Those that do not take turns are not timed again.
    clock.takes_turns, clock.factors = False, (1.0,)
    assert [timing.ms for timing in model.measured(models)] == [pytest.approx(8.0)] * 3
    assert len(clock.asked[-1]) == 3 and model.predicted(*models[0]) == pytest.approx(24.0)
