import json

import pytest

import matta_jax
from matta_jax import config as c
from matta_jax import stops
from matta_jax.errors import UserError
from matta_jax.training import TrainResult

CONDITIONS = {"alone": {"nest.d_ff": None, "nest.widths": ()}, "MatTA": {}}


@pytest.fixture
def trained(monkeypatch):
    """The folders that are trained; training leaves what a finished run does, and no more."""
    names = []

    def train(config, workdir, log):
        names.append(workdir.name)
        step = str(config.train.num_steps)
        (workdir / "checkpoints" / step / "params").mkdir(parents=True)
        (workdir / "config.json").write_text(json.dumps(c.to_dict(config)))
        row = {"step": 4, "eval/student": 3.0, "eval/ta": 2.0 if config.nest.d_ff else None}
        (workdir / "metrics.jsonl").write_text(json.dumps(row) + "\n")
        return TrainResult(workdir, config.train.num_steps, finished=True, metrics={})

    monkeypatch.setattr(matta_jax, "train", train, raising=False)
    return names


def config():
    return c.from_dict(
        {
            "model": {"d_ff": 128},
            "nest": {"d_ff": 512, "widths": [128, 512]},
            "train": {"num_steps": 4},
            "optimizer": {"warmup_steps": 0},
        }
    )


def test_runs_are_trained_once_and_seeds_can_be_shared_by_processes(load, trained, tmp_path):
    runs = load("lab.runs")
    log = []
    first = runs.Lab(config(), tmp_path, tmp_path, [0], log.append)
    with pytest.raises(UserError, match="is not trained; run this experiment with all its seeds"):
        first.train(CONDITIONS, (0, 1))
    assert log == ["alone, seed 0", "MatTA, seed 0"]

    lab = runs.Lab(config(), tmp_path, tmp_path, None, log.append)
    models = {key: run.figures for key, run in lab.train(CONDITIONS, (0, 1)).items()}
    assert log[2:] == ["alone, seed 1", "MatTA, seed 1"] and len(set(trained)) == 4
    assert models["alone", 1] == {"student": 3.0}
    assert models["MatTA", 0] == {"student": 3.0, "ta": 2.0}


def test_no_other_run_begins_after_one_that_a_signal_stopped(load, tmp_path, monkeypatch):
    names = []

    def train(config, workdir, log):
        names.append(workdir.name)
        return TrainResult(workdir, 2, finished=False, metrics={})

    monkeypatch.setattr(matta_jax, "train", train, raising=False)
    lab = load("lab.runs").Lab(config(), tmp_path, tmp_path, None, lambda line: None)
    # Experiments pass over a UserError of a condition.
    with pytest.raises(stops.Stopped):
        lab.train(CONDITIONS, [0, 1])
    assert len(names) == 1


def test_a_row_tells_the_flops_of_its_run(load, trained, tmp_path):
    lab = load("lab.runs").Lab(config(), tmp_path, tmp_path, None, print)
    longer = CONDITIONS["alone"] | {"train.num_steps": 8}
    rows = {row["condition"]: row for row in lab.rows(CONDITIONS | {"longer": longer}, (0,))}
    data = config().data
    tokens = 4 * data.batch_size * data.seq_len
    assert rows["MatTA"]["tflops"] == lab.flops({}) * tokens / 1e12 > rows["alone"]["tflops"]
    assert rows["longer"]["tflops"] == 2 * rows["alone"]["tflops"]
    assert rows["longer"]["steps"] == 8 and rows["alone"]["seed"] == 0


def test_what_is_stored_is_measured_once(load, tmp_path):
    stored, measured = load("lab.runs").stored, []

    def measure():
        measured.append(1)
        return [{"bits": 2.5}]

    for _ in range(2):
        assert stored(tmp_path / "scores.json", measure) == [{"bits": 2.5}]
    assert measured == [1]
