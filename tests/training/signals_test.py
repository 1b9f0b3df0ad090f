"""A run that is asked to stop."""

import signal

import pytest

from matta_jax.checkpoints import Checkpoints


@pytest.mark.slow
def test_sigterm_saves_and_ends_well(tiny, tmp_path, start_child):
    """Before it evaluates, which may take longer than whoever stops it waits."""
    long = tiny(train__num_steps=3000, train__checkpoint_every=2900, train__eval_every=2900)
    child = start_child(long, tmp_path / "stopped")
    child.read_until("step 4/3000")
    child.process.send_signal(signal.SIGTERM)
    output = child.read_to_end()
    assert child.process.returncode == 0 and "DONE" in output
    with Checkpoints(tmp_path / "stopped" / "checkpoints", read_only=True) as checkpoints:
        steps = checkpoints.steps
        evaluation = checkpoints.meta(steps[0])["evaluation"]
    assert len(steps) == 1 and 4 <= steps[0] < 2900
    assert evaluation == {} and "eval" not in output
