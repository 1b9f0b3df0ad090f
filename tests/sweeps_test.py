import json
import os
import re
import shutil

import pytest

from matta_jax import config as c
from matta_jax import sweep, sweeps
from matta_jax.errors import UnsavedError, UserError
from matta_jax.sweeps import gather_sweep, plan_sweep

SEEDS = [{"train.seed": 0}, {"train.seed": 1}]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], "the sweep has no runs"),
        ([{"train.seed": 0}, 3], "run 2 of the sweep is 3"),
        ([*SEEDS, {"train.seed": 1}], "runs 2 and 3 of the sweep are both train.seed-1; drop one"),
        (
            [{"train.sead": 0}],
            "run 1 of the sweep, train.sead-0: unknown config field 'train.sead'; did you mean",
        ),
        (
            [{}, {"model.num_heads": 5}],
            "run 2 of the sweep, model.num_heads-5: model.num_heads=5 must divide",
        ),
        (
            [{"data.source": "text:a/b"}, {"data.source": "text:a_b"}],
            "runs 1 and 2 of the sweep differ, but would both have the folder "
            "'data.source-text_a_b'",
        ),
        (
            [
                {"train.seed": 1, "train.log_every": 2},
                {"train.log_every": 2, "train.seed": 1},
            ],
            "runs 1 and 2 of the sweep are both train.log_every-2--train.seed-1; drop one",
        ),
        ([{"nest.widths": (16, 48)}, {"nest.widths": [16, 48]}], "runs 1 and 2 .* are both"),
        ([{"train.seed": object()}], "run 1 of the sweep, train.seed-_object_object"),
        ([{5: 0}], "run 1 of the sweep, 5-0: unknown config field '5'"),
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
        "nest.widths-16-48",
        "data.cache_dir-_a_b_c--train.seed-2",
    ]
    assert runs[1].config.nest.widths == (16, 48) and runs[2].config.train.seed == 2
    assert all(run.workdir == tmp_path / run.name for run in runs)


def test_names_are_labels_and_those_of_an_older_sweep_stay(tiny, tmp_path):
    long = {"data.cache_dir": "/ä/" + "x" * 80}
    overrides = [{"train.seed": 1, "optimizer.clip_norm": 0.5}, long, long | {"train.seed": 3}]
    names = [run.name for run in plan_sweep(tiny(), overrides, tmp_path)]
    assert len(set(names)) == 3
    for name in names:
        assert re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])", name), name
    (tmp_path / "train.seed=1,optimizer.clip_norm=0.5").mkdir()
    first = plan_sweep(tiny(), overrides, tmp_path)[0]
    assert first.name == "train.seed=1,optimizer.clip_norm=0.5"


@pytest.mark.slow
def test_a_sweep_goes_on_where_it_stopped_and_tells_how_each_run_ended(tiny, tmp_path, monkeypatch):
    overrides = [
        *SEEDS,
        {"mesh.data": 3},
        {"optimizer.learning_rate": 1e6, "train.max_skipped_steps": 0},
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
        metrics = (workdir / f"train.seed-{seed}" / "metrics.jsonl").read_text().splitlines()
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
        workdir / "train.seed-1" / "checkpoints" / "6"
    )  # As a run that was killed before its end.
    trained = []

    def train(config, folder, log):
        trained.append(folder.name)
        return real(config, folder, log=log)

    from matta_jax import sweeps

    real = sweeps.train
    monkeypatch.setattr(sweeps, "train", train)
    again = sweep(config, SEEDS, workdir, log=lines.append)
    assert trained == ["train.seed-1"] and again.rows == result.rows[:2]
    assert "sweep 1/2: train.seed-0, is finished" in lines
    with open(workdir / "train.seed-1" / "metrics.jsonl", "a") as file:
        file.write('{"half')
    assert gather_sweep(plan_sweep(config, SEEDS, workdir)).rows == result.rows[:2]


@pytest.mark.slow
def test_a_stopped_run_stops_the_sweep(tiny, tmp_path):
    def stop(line):
        if line.startswith("step 2/"):
            os.kill(os.getpid(), 15)

    result = sweep(
        tiny(nest__mix_per_step=0, train__num_steps=60), SEEDS, tmp_path / "sweep", log=stop
    )
    assert [row["status"] for row in result.rows] == ["stopped", "missing"]
    assert not (tmp_path / "sweep" / "train.seed-1").exists()


def test_one_run_of_an_array_trains_alone_and_leaves_the_table_to_gather(
    tiny, tmp_path, monkeypatch
):
    trained = []
    overrides = [{"train.seed": seed} for seed in range(3)]

    class Finished:
        finished = True

    def train(config, workdir, log):
        trained.append(workdir.name)
        return Finished

    monkeypatch.setattr(sweeps, "train", train)
    result = sweep(tiny(), overrides, tmp_path, index=1, log=lambda _: None)
    assert trained == ["train.seed-1"] and len(result.rows) == 3
    assert not (tmp_path / "sweep.json").exists()
    for index in (-1, 3):
        with pytest.raises(UserError, match=f"index={index} must be from 0 to 2"):
            sweep(tiny(), overrides, tmp_path, index=index)


def test_a_long_name_is_cut_and_told_apart_by_a_hash(tiny, tmp_path):
    overrides = [{"data.source": f"text:{'e' * 200}/{name}"} for name in "ab"]
    names = [run.name for run in plan_sweep(tiny(), overrides, tmp_path)]
    assert len(set(names)) == 2
    assert all(len(name) == 63 and name.startswith("data.source-") for name in names)
    assert names == [run.name for run in plan_sweep(tiny(), overrides, tmp_path)]
    (tmp_path / names[0]).mkdir()


LAST = {"step": 6, "eval/student": 2.5, "eval/ta": 2.25}


def folder_of(run, *lines, config=None):
    step = str(run.config.train.num_steps)
    (run.workdir / "checkpoints" / step / "params").mkdir(parents=True)
    text = json.dumps(c.to_dict(run.config)) if config is None else config
    (run.workdir / "config.json").write_text(text)
    (run.workdir / "metrics.jsonl").write_bytes(b"\n".join(lines))


@pytest.mark.parametrize(
    "line",
    [
        b"5",
        b"{}",
        b"[]",
        b"null",
        b'"eval/student"',
        b"NaN",
        b'{"step": 7, "eval/student": NaN}',
        b'{"step": 7, "eval/student"',
        b'{"eval/student": 1.0}',
        b'{"step": "7", "eval/student": 1.0}',
        b'{"step": null, "eval/student": 1.0}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_a_line_that_is_no_evaluation_is_passed_over(tiny, tmp_path, line):
    [run] = plan_sweep(tiny(), [{}], tmp_path)
    folder_of(run, json.dumps(LAST).encode(), line)
    [row] = gather_sweep([run]).rows
    assert row == {
        "name": "base",
        "overrides": {},
        "status": "finished",
        "step": 6,
        "student": 2.5,
        "ta": 2.25,
    }


@pytest.mark.parametrize("value", ["null", '"x"', "[]", "true"])
def test_a_loss_that_is_no_number_is_not_the_lowest(tiny, tmp_path, value):
    runs = plan_sweep(tiny(), SEEDS, tmp_path)
    folder_of(runs[0], f'{{"step": 6, "eval/student": {value}, "eval/ta": {value}}}'.encode())
    folder_of(runs[1], json.dumps(LAST).encode())
    result = gather_sweep(runs)
    assert [row["student"] for row in result.rows] == [None, 2.5]
    assert result.table.endswith("finished runs: train.seed-1")


@pytest.mark.parametrize(
    ("config", "status"),
    [
        ("5", "another config"),
        ("{}", "another config"),
        ("NaN", "stopped"),
        ("{", "stopped"),
    ],
)
def test_a_run_of_another_config_is_not_this_one(tiny, tmp_path, config, status):
    [run] = plan_sweep(tiny(), [{}], tmp_path)
    folder_of(run, json.dumps(LAST).encode(), config=config)
    [row] = gather_sweep([run]).rows
    figures = (None, None) if status == "another config" else (6, 2.5)
    assert (row["status"], row["step"], row["student"]) == (status, *figures)


@pytest.mark.parametrize(
    ("field", "status"), [("mix_every", "finished"), ("d_ff", "another config")]
)
def test_a_run_of_an_older_version_has_the_defaults_of_newer_fields(tiny, tmp_path, field, status):
    [run] = plan_sweep(tiny(), [{}], tmp_path)
    stored = c.to_dict(run.config)
    del stored["nest"][field]
    folder_of(run, json.dumps(LAST).encode(), config=json.dumps(stored))
    assert gather_sweep([run]).rows[0]["status"] == status


def test_a_run_that_failed_keeps_its_words(tiny, tmp_path):
    runs = plan_sweep(tiny(), SEEDS, tmp_path)
    folder_of(runs[0], json.dumps(LAST).encode())
    words = "failed: data.batch_size=4 must be a multiple of 3"
    first = gather_sweep(runs, {"train.seed-1": words})
    again = gather_sweep(runs)
    assert again.rows == first.rows and again.rows[1]["status"] == words
    assert f"train.seed-1 {words}" in again.table
    # It went on.
    (runs[1].workdir).mkdir()
    (runs[1].workdir / "metrics.jsonl").write_text(json.dumps(LAST))
    assert gather_sweep(runs).rows[1]["status"] == "stopped"


@pytest.mark.parametrize("text", ["5", "{}", "[5, {}, null]", '[{"name": []}]', "NaN", "", "["])
def test_a_damaged_table_is_written_anew(tiny, tmp_path, text):
    (tmp_path / "sweep.json").write_text(text)
    result = gather_sweep(plan_sweep(tiny(), SEEDS, tmp_path))
    assert json.loads((tmp_path / "sweep.json").read_text()) == result.rows


def test_a_table_that_cannot_be_written_is_not_lost(tiny, tmp_path):
    runs = plan_sweep(tiny(), SEEDS, tmp_path)
    (tmp_path / "sweep.json").mkdir()
    with pytest.raises(UnsavedError, match="workdir=.* cannot be written") as error:
        gather_sweep(runs)
    assert "| train.seed |" in error.value.text and "\n" not in str(error.value)


def test_overrides_are_written_as_the_config_takes_them(tiny, tmp_path):
    [run] = plan_sweep(tiny(), [{"nest.widths": (16, 48)}], tmp_path)
    [row] = gather_sweep([run]).rows
    assert row["overrides"] == {"nest.widths": [16, 48]}
