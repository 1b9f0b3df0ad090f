import json
import os
import shutil

import pytest

from matta_jax import sweep
from matta_jax.errors import UserError
from matta_jax.sweeps import gather_sweep, plan_sweep

SEEDS = [{"train.seed": 0}, {"train.seed": 1}]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], "the sweep has no runs"),
        ([{"train.seed": 0}, 3], "run 2 of the sweep is 3"),
        ([*SEEDS, {"train.seed": 1}], "runs 2 and 3 of the sweep are both train.seed=1; drop one"),
        (
            [{"train.sead": 0}],
            "run 1 of the sweep, train.sead=0: unknown config field 'train.sead'; did you mean",
        ),
        (
            [{}, {"model.num_heads": 5}],
            "run 2 of the sweep, model.num_heads=5: model.num_heads=5 must divide",
        ),
    ],
)
def test_all_runs_are_checked_before_the_first_starts(tiny, tmp_path, overrides, words):
    with pytest.raises(UserError, match=words):
        sweep(tiny(), overrides, tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


def test_names_are_folders(tiny, tmp_path):
    overrides = [{}, {"nest.widths": (16, 48)}, {"data.cache_dir": "/a b/c", "train.seed": 2}]
    runs = plan_sweep(tiny(), overrides, tmp_path)
    assert [run.name for run in runs] == [
        "base",
        "nest.widths=16-48",
        "data.cache_dir=_a_b_c,train.seed=2",
    ]
    assert runs[1].config.nest.widths == (16, 48) and runs[2].config.train.seed == 2
    assert all(run.workdir == tmp_path / run.name for run in runs)


@pytest.mark.slow
def test_a_sweep_goes_on_where_it_stopped_and_tells_how_each_run_ended(tiny, tmp_path, monkeypatch):
    overrides = [
        *SEEDS,
        {"mesh.data": 3},
        {"optimizer.learning_rate": 1e30, "train.max_skipped_steps": 0},
    ]
    config, workdir = tiny(nest__mix_per_step=0), tmp_path / "sweep"
    lines = []
    result = sweep(config, overrides, workdir, log=lines.append)
    assert [row["status"].partition(":")[0] for row in result.rows] == [
        "finished",
        "finished",
        "failed",
        "diverged",
    ]
    assert "data.batch_size=4 must be a multiple of 3" in result.rows[2]["status"]
    assert json.loads((workdir / "sweep.json").read_text()) == result.rows
    assert (workdir / "sweep.md").read_text() == result.table + "\n"
    for row, seed in zip(result.rows[:2], "01", strict=True):
        metrics = (workdir / f"train.seed={seed}" / "metrics.jsonl").read_text().splitlines()
        last = [row for row in map(json.loads, metrics) if "eval/student" in row][-1]
        assert (row["step"], row["student"], row["ta"]) == (
            6,
            last["eval/student"],
            last["eval/ta"],
        )
    best = min(result.rows[:2], key=lambda row: row["student"])["name"]
    assert result.table.endswith(f"finished runs: {best}")
    assert gather_sweep(plan_sweep(config, SEEDS, workdir)).rows == result.rows[:2]

    shutil.rmtree(
        workdir / "train.seed=1" / "checkpoints" / "6"
    )  # As a run that was killed before its end.
    trained = []

    def train(config, folder, log):
        trained.append(folder.name)
        return real(config, folder, log=log)

    from matta_jax import sweeps

    real = sweeps.train
    monkeypatch.setattr(sweeps, "train", train)
    again = sweep(config, SEEDS, workdir, log=lines.append)
    assert trained == ["train.seed=1"] and again.rows == result.rows[:2]
    assert "sweep 1/2: train.seed=0, is finished" in lines
    with open(workdir / "train.seed=1" / "metrics.jsonl", "a") as file:
        file.write('{"half')
    assert gather_sweep(plan_sweep(config, SEEDS, workdir)).rows == result.rows[:2]


def test_a_stopped_run_stops_the_sweep(tiny, tmp_path):
    def stop(line):
        if line.startswith("step 2/"):
            os.kill(os.getpid(), 15)

    result = sweep(
        tiny(nest__mix_per_step=0, train__num_steps=60), SEEDS, tmp_path / "sweep", log=stop
    )
    assert [row["status"] for row in result.rows] == ["stopped", "missing"]
    assert not (tmp_path / "sweep" / "train.seed=1").exists()
