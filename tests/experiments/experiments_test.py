"""The experiments: the runs that they ask for, and the tables that their READMEs show."""

import gzip
import json
import pathlib

import pytest

from matta_jax import config as c
from matta_jax.errors import UserError
from matta_jax.sweeps import plan_sweep

FOLDER = pathlib.Path(__file__).parents[2] / "experiments"
NAMES = sorted(path.parent.name for path in FOLDER.glob("*/experiment.py"))
USUAL_RATE = 4e-3


def planned_lab(load, folder):
    """A `Lab` that trains nothing: it checks and keeps the configs of the runs that it is asked
    for, and makes up their figures.
    """
    runs = load("lab.runs")
    asked = {}

    class Planned(runs.Lab):
        def train(self, conditions, seeds):
            trained = {}
            for seed in seeds:
                for i, (condition, overrides) in enumerate(conditions.items()):
                    seeded = dict(overrides) | {"train.seed": seed}
                    run = plan_sweep(self.config, [seeded], self.workdir)[0]
                    asked[run.name] = run.config
                    figures = made_up(run.config, i, seed)
                    trained[condition, seed] = runs.Trained(run.workdir, figures)
            return trained

    data = pathlib.Path("/data")
    config = load("lab.laptop").laptop_config(data, folder)
    return Planned(config, data, folder, None, print), asked


def made_up(config, i, seed):
    """Figures of the i-th condition, of which the usual learning rate is the best."""
    off = abs(config.optimizer.learning_rate - USUAL_RATE)
    figures = {"student": 3 + off + 1e-4 * i * (1 + seed % 7)}
    nest = config.nest
    if nest.d_ff is not None or nest.num_layers is not None or nest.d_model is not None:
        figures["ta"] = 2 + 1e-4 * i * seed
    return figures


@pytest.mark.parametrize("name", ["baseline", "nesting_axes", "sensitivity", "super_additivity"])
def test_an_experiment_asks_for_valid_runs_of_which_others_share_some(
    load, name, tmp_path, monkeypatch
):
    module = load(f"{name}.experiment")
    experiment = module.EXPERIMENT
    if name == "super_additivity":
        monkeypatch.setattr(module, "copy_picture", lambda workdir: None)
    lab, asked = planned_lab(load, tmp_path)
    results = experiment.measure(lab)
    assert {row["seed"] for row in results["rows"]} == set(experiment.seeds)
    assert {"train.seed=0"} & set(asked)  # MatTA as it is, in all of these.
    if name == "baseline":  # Runs of as many FLOPs, to a step.
        flops = {row["condition"]: row["tflops"] for row in results["rows"]}
        assert flops["Student alone, FLOPs of MatTA"] == pytest.approx(flops["MatTA"], rel=0.003)
        assert flops["TA alone, FLOPs of MatTA"] == pytest.approx(flops["MatTA"], rel=0.003)
        assert (
            flops["Student alone"] < flops["TA alone"] < flops["MatTA"] < flops["MatTA and a mix"]
        )
    if name == "super_additivity":
        tuned = [config for run, config in asked.items() if "train.seed=100" in run]
        reported = [config for run, config in asked.items() if "train.seed=100" not in run]
        assert len(tuned) == 12
        assert all("validation" in config.data.eval_source for config in tuned)
        # Nothing is tuned to the text that is reported.
        assert all("test" in config.data.eval_source for config in reported)
        loss = {row["condition"]: row["student"] for row in results["rows"] if row["seed"] == 0}
        a, am, s, sm = (loss[cell] for cell in module.CELLS)
        assert f"{(a - sm) - (a - s) - (a - am):+.4f}" in experiment.show(results, tmp_path)


def test_the_taught_text_is_the_first_characters_of_the_books(load, tmp_path, monkeypatch):
    teacher = load("teacher.experiment")
    data, workdir = tmp_path / "data", tmp_path / "runs"
    (data / "books").mkdir(parents=True)

    def books(*texts):
        return gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in texts).encode())

    for side in ("validation", "test"):
        (data / "books" / f"{side}.jsonl.gz").write_bytes(books("held out"))
    with pytest.raises(UserError, match=r"has no books/train-00000\*.jsonl.gz; name the folder"):
        teacher.EXPERIMENT.write_data(data, workdir)
    (data / "books" / "train-00000-of-2.jsonl.gz").write_bytes(books("abcd", "efgh", "ijkl"))
    monkeypatch.setattr(teacher, "_CHARACTERS", 6)
    teacher.EXPERIMENT.write_data(data, workdir)
    source = teacher.EXPERIMENT.config(data, workdir).data.source
    written = pathlib.Path(source.removeprefix("text:"))
    assert written.read_text() == '{"text": "abcd"}\n{"text": "ef"}\n'


@pytest.mark.parametrize(
    "name", [name for name in NAMES if (FOLDER / name / "results.json").is_file()]
)
def test_a_readme_shows_the_stored_figures(load, name, tmp_path):
    experiment = load(f"{name}.experiment").EXPERIMENT
    folder = tmp_path / name
    folder.mkdir()
    table = experiment.show(json.loads((FOLDER / name / "results.json").read_text()), folder)
    readme = (FOLDER / name / "README.md").read_text()
    assert f"<!-- results -->\n\n{table}\n\n<!-- /results -->" in readme
    pictures = sorted(path.name for path in folder.glob("*.png"))
    assert pictures and all(
        f"({picture})" in readme and (FOLDER / name / picture).is_file() for picture in pictures
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_experiment_runs_from_its_command(load, tmp_path, corpus, cache, monkeypatch):
    """The longest road: runs, search, scores, table and picture; a second call trains nothing
    again.
    """
    experiment = load("elasticity.experiment").EXPERIMENT
    conditions = load("elasticity.conditions")
    books, runs = load("lab.books"), load("lab.runs")
    for side in (books.TUNED_ON, books.REPORTED_ON):
        text = "".join(json.dumps({"text": "the quick brown fox " * 30}) + "\n" for _ in range(2))
        books.excerpt(tmp_path, side).write_text(text)
    alone = {"alone 128": conditions.TRAINED_ALONE["alone 128"]}
    monkeypatch.setattr(experiment, "seeds", (0, 1))
    monkeypatch.setattr(conditions, "WIDTHS", (128,))
    monkeypatch.setattr(conditions, "TRAINED_ALONE", alone)
    words = tmp_path / "lambada" / "lambada_test.jsonl"
    words.parent.mkdir()
    words.write_text(
        "".join(json.dumps({"text": f"a passage about foxes {i} fox"}) + "\n" for i in range(4))
    )
    small = {
        "vocab_size": 256,
        "num_layers": 4,
        "d_model": 16,
        "num_heads": 2,
        "d_ff": 128,
        "max_len": 32,
    }
    config = c.from_dict(
        {
            "model": small,
            "nest": {"d_ff": 1024, "widths": [128, 256, 512, 1024], "mix_per_step": 0},
            "optimizer": {"warmup_steps": 0},
            "data": {
                "source": corpus,
                "seq_len": 32,
                "batch_size": 2,
                "cache_dir": cache,
                "eval_fraction": 0.2,
            },
            "train": {"num_steps": 2, "eval_every": 2, "eval_batches": 1, "peak_tflops": 1.0},
            "mesh": {"data": 1},
        }
    )
    lines = []
    lab = runs.Lab(config, tmp_path, tmp_path, None, lines.append)
    with pytest.raises(Exception, match="is not trained; run this experiment with all its seeds"):
        runs.Lab(config, tmp_path, tmp_path, [0], lines.append).train({"two points": {}}, (0, 1))
    results = experiment.measure(lab)
    table = experiment.show(results, tmp_path)
    assert len(results["rows"]) == 2 * (2 * 8 + 1) and table.count("\n- ") == 8
    assert (tmp_path / "elasticity.png").is_file()
    before = {file: file.stat().st_mtime_ns for file in tmp_path.rglob("elasticity.json")}
    assert experiment.measure(lab) == results and len(before) == 6
    assert all(file.stat().st_mtime_ns == time for file, time in before.items())
