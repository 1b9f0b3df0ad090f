"""A trace of some steps: written, and of these steps alone."""

import gzip
import json

import pytest

from matta_jax import train
from matta_jax.errors import UserError
from matta_jax.training import profile_steps


def test_steps_are_first_and_last():
    assert profile_steps("10:13") == range(10, 13)
    for text in ("10", "13:10", "5:5", "a:b", "-1:4", "1:2:3", ""):
        with pytest.raises(UserError, match="must be FIRST:LAST, such as 10:13"):
            profile_steps(text)


@pytest.mark.slow
def test_a_run_writes_a_trace_that_perfetto_reads(tiny, tmp_path):
    lines = []
    train(tiny(), tmp_path / "run", log=lines.append, profile=range(2, 4))
    assert sum(line.startswith("steps 3 to 4 are profiled: ") for line in lines) == 1
    (trace,) = (tmp_path / "run" / "profile").rglob("perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
    assert len(events) > 100
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))


@pytest.mark.slow
def test_a_run_that_ends_before_its_profile_writes_what_it_has(tiny, tmp_path):
    train(tiny(), tmp_path / "run", log=lambda _: None, profile=range(5, 100))
    assert list((tmp_path / "run" / "profile").rglob("*.xplane.pb"))
