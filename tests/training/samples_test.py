import numpy as np
import pytest

from matta_jax import train
from matta_jax.errors import UserError


@pytest.mark.slow
def test_student_and_ta_write_a_line_each(tiny, tmp_path):
    lines = []
    config = tiny(
        train__num_steps=2,
        optimizer__warmup_steps=1,
        train__sample_every=1,
        train__sample_prompt="the ",
    )
    train(config, tmp_path / "run", log=lines.append)
    lines = [line for line in lines if line.startswith("sample of")]
    assert [line.partition(":")[0] for line in lines] == [
        f"sample of the {name} at step {step}" for step in (1, 2) for name in ("Student", "TA")
    ]
    assert all(": 'the " in line and "\n" not in line for line in lines)


def test_several_processes_do_not_sample(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_count", lambda: 2)
    # The other process finds the same mistake.
    gather = "jax.experimental.multihost_utils.process_allgather"
    monkeypatch.setattr(gather, lambda flag: np.stack([flag] * 2))
    with pytest.raises(UserError, match=r"train\.sample_every=1 needs a run of one process"):
        train(tiny(train__sample_every=1), tmp_path / "run", log=lambda line: None)
    assert not (tmp_path / "run").exists()
