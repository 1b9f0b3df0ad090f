"""What a run leaves, and that it leaves nothing where it cannot start."""

import json

import numpy as np
import pytest

from matta_jax import config as c
from matta_jax import train
from matta_jax.checkpoints import Checkpoints
from matta_jax.errors import UserError


def quiet(line):
    """Takes progress lines, and shows none."""


def test_a_run_leaves_its_config_metrics_and_checkpoints(run):
    config, workdir, lines = run
    assert c.from_dict(json.loads((workdir / "config.json").read_text())) == config
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows if "eval/student" in row] == [3, 6]
    first = next(row for row in rows if "loss" in row)
    for name in (
        "student",
        "ta",
        "distill",
        "mix_0",
        "gap",
        "agreement",
        "grad_norm",
        "mfu",
        "tokens_per_second",
    ):
        assert np.isfinite(first[name]), name
    assert first["gap"] == pytest.approx(first["student"] - first["ta"], abs=1e-6)
    evaluations = [row["eval/student"] for row in rows if "eval/student" in row]
    assert evaluations[-1] < 5.3 < first["student"]
    with Checkpoints(workdir / "checkpoints", read_only=True) as checkpoints:
        meta = checkpoints.meta(6)
    assert c.from_dict(meta["config"]) == config and meta["axes"]["embed/tokens"] == [
        "vocab",
        "d_model",
    ]
    assert any(
        "step 6/6 (100.0%)" in line and "tok/s MFU" in line and "ETA 0:00" in line for line in lines
    )


def test_a_lone_student_trains(tiny, tmp_path):
    config = tiny(
        nest__num_layers=None,
        nest__d_model=None,
        nest__num_heads=None,
        nest__d_ff=None,
        nest__widths=[],
        train__num_steps=3,
    )
    steps, evaluations = {}, {}
    result = train(
        config,
        tmp_path / "run",
        log=quiet,
        on_step=steps.__setitem__,
        on_eval=evaluations.__setitem__,
    )
    assert list(steps) == [1, 2, 3] and np.isfinite(steps[2]["student"])
    assert evaluations == {3: result.metrics}
    assert (
        set(result.metrics) == {"eval/student", "eval/agreement"}
        and result.metrics["eval/agreement"] == 1
    )


@pytest.mark.slow
def test_named_members_are_trained_logged_and_evaluated(tiny, tmp_path):
    config = tiny(nest__members={"middle": "layers=2;d_ff=32"})
    lines = []
    result = train(config, tmp_path / "run", log=lines.append)
    rows = [
        json.loads(line)
        for line in (tmp_path / "run" / "metrics.jsonl").read_text().split("\n")[:-1]
    ]
    steps = [row for row in rows if "loss" in row]
    for name in ("members/middle", "members/middle_distill"):
        assert len(steps) == 6 and all(np.isfinite(row[name]) for row in steps), name
    assert [row["step"] for row in rows if "eval/members/middle" in row] == [3, 6]
    assert result.metrics["eval/members/middle"] < 5.3 < steps[0]["members/middle"]
    with Checkpoints(tmp_path / "run" / "checkpoints", read_only=True) as checkpoints:
        meta = checkpoints.meta(6)
    assert c.from_dict(meta["config"]) == config
    assert meta["evaluation"]["eval/members/middle"] == result.metrics["eval/members/middle"]


def test_nothing_is_left_of_a_run_that_cannot_start(tiny, tmp_path):
    with pytest.raises(UserError, match="model.vocab_size=200"):
        train(tiny(model__vocab_size=200), tmp_path / "run", log=quiet)
    with pytest.raises(UserError, match="matches no file"):
        train(tiny(data__source="text:/nowhere/*.txt"), tmp_path / "run", log=quiet)
    with pytest.raises(UserError, match="nest.members.big='d_ff=64': d_ff=64 must be from 1 to"):
        train(tiny(nest__members={"big": "d_ff=64"}), tmp_path / "run", log=quiet)
    with pytest.raises(UserError, match="nest.members.deep='layers=0,9': .*layers=9 is outside"):
        train(tiny(nest__members={"deep": "layers=0,9"}), tmp_path / "run", log=quiet)
    with pytest.raises(UserError, match="mesh.fsdp=64 needs 64 devices, but there are 8"):
        train(tiny(mesh__fsdp=64), tmp_path / "run", log=quiet)
    assert not (tmp_path / "run").exists()
