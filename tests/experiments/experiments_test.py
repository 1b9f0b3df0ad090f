"""The experiments: the runs that they ask for, and the tables that their READMEs show."""

import gzip
import json
import pathlib

import pytest

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


@pytest.mark.parametrize("name", ["nesting_axes", "super_additivity"])
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
