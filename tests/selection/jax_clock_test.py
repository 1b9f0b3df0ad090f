"""Our programs are timed on this device."""

import pytest

from matta_jax.errors import UserError
from matta_jax.selection import Workload, _jax_clock


@pytest.mark.parametrize("mode", ["prefill", "decode"])
def test_real_models_are_timed(source, mode):
    clock = _jax_clock.JaxClock(source, Workload(mode, batch_size=2, length=16))
    [timing] = clock.times((), [source.nest.student])
    assert 0 < timing.ms < 1e4 and 5 <= timing.rounds <= 200 and timing.spread >= 0
    architecture = source.architecture_of(source.nest.student)
    with pytest.raises(UserError, match="latency_length=64 must be at most model.max_len=32"):
        _jax_clock.measure(architecture, Workload(mode, length=64))
