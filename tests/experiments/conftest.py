"""Modules of experiments/, imported as its commands do; and runs of the ladder that are made up."""

import importlib
import pathlib

import pytest

from matta_jax.config import override
from matta_jax.errors import UserError

FOLDER = pathlib.Path(__file__).parents[2] / "experiments"


@pytest.fixture
def load(monkeypatch):
    """`load("lab.books")`: a module of experiments/."""
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module


@pytest.fixture
def made_up_lab(load, monkeypatch, tmp_path):
    """`made_up_lab(best_rate, missing, excess)`: a `Lab` that trains nothing but checks the configs
    that it is asked for, whose models are the worse the farther their rate is from the best; a
    condition's are worse by `excess(condition)`. And what is measured: seed, side and specs.
    """

    def make(best_rate, missing=(), excess=lambda condition: 0.0):
        rung_runs, runs, texts = load("lab.rung_runs"), load("lab.runs"), load("lab.texts")
        asked = []

        def train(self, conditions, seeds):
            trained = {}
            for name, overrides in conditions.items():
                rate = override(self.config, overrides).optimizer.learning_rate
                for seed in seeds:
                    if (name, seed) in missing:
                        raise UserError(f"{name} {seed} is not trained")
                    folder = self.workdir / name / str(seed) / f"{rate}"
                    folder.mkdir(parents=True, exist_ok=True)
                    trained[name, seed] = runs.Trained(folder)
            return trained

        def measured(self, run, side, specs):
            asked.append((run.seed, side, list(specs)))
            rate, condition = float(run.workdir.name), run.workdir.parents[1].name
            loss = (1 + excess(condition)) * (2 + abs(rate - best_rate) + run.seed / 100)
            scores = {"parameters": 8, **dict.fromkeys(texts.KINDS, loss)}
            return {spec: scores for spec in specs}

        monkeypatch.setattr(runs.Lab, "train", train)
        monkeypatch.setattr(runs.Lab, "flops", lambda self, overrides: 1e9)
        monkeypatch.setattr(rung_runs.RungRuns, "_measured", measured)
        rung, data = load("lab.rungs").RUNGS[0], pathlib.Path("/data")
        config = load("lab.rungs").rung_config(rung, 20, {"source": "stdlib"})
        return runs.Lab(config, data, tmp_path, None, lambda line: None), asked

    return make


@pytest.fixture
def made_up_runs(load, made_up_lab):
    """`made_up_runs(...)`: the `RungRuns` of such a lab, and what is measured."""

    def make(best_rate, **facts):
        lab, asked = made_up_lab(best_rate, **facts)
        rung = load("lab.rungs").RUNGS[0]
        return load("lab.rung_runs").RungRuns(lab, rung, 20), asked

    return make
