"""The experiments: the runs that they ask for, and the tables that their READMEs show."""

import json
import pathlib

import pytest

from matta_jax.config import override
from matta_jax.nesting import nest_of

FOLDER = pathlib.Path(__file__).parents[2] / "experiments"
NAMES = sorted(path.parent.name for path in FOLDER.glob("*/experiment.py"))


def test_super_additivity_is_the_gain_beyond_the_sum_of_both(load, made_up_lab, tmp_path):
    experiment = load("super_additivity.experiment").EXPERIMENT
    excess = {"AdamW, alone": 0.5, "AdamW, MatTA": 0.4, "Muon, alone": 0.3}
    lab, _ = made_up_lab(0.02, excess=lambda name: excess.get(name, 0.1))
    runs = load("lab.rung_runs").RungRuns(lab, experiment.rung, experiment.length)
    rows = runs.rows(experiment.cells(), experiment.seeds)
    assert {row["seed"] for row in rows} == {0, 1, 2, 3, 4}

    table = experiment.show({"rows": rows}, tmp_path)
    # Both gain 0.4 of the loss, the optimisers 0.2 and 0.4, MatTA 0.1.
    middle = 2 + 2 / 100
    assert f"**{(0.4 - 0.2 - 0.1) * middle:+.4f}" in table
    assert f"**{(0.4 - 0.4 - 0.1) * middle:+.4f}" in table


def test_the_tas_of_all_axes_have_as_many_parameters(load, made_up_lab, tmp_path):
    experiment = load("nesting_axes.experiment").EXPERIMENT
    config = experiment.config(FOLDER, tmp_path)
    largest, smallest = set(), set()
    for condition, overrides in experiment.conditions().items():
        nest = nest_of(override(config, overrides))
        sizes = nest.ta.sizes
        layer = sizes["d_model"] * (4 * sizes["heads"] * 16 + 2 * sizes["d_ff"])
        parameters = len(nest.ta.layers) * layer
        (smallest if condition == "Student alone" else largest).add(parameters)
        if "alone" not in condition:
            assert len(nest.student.layers) == 3 and nest.student.sizes["d_ff"] == 16
    assert largest == {experiment.rung.parameters} and smallest == {15_360}


def test_a_teacher_of_the_largest_rung_teaches_who_is_said(load, made_up_lab, tmp_path):
    experiment = load("teacher.experiment").EXPERIMENT
    lab, _ = made_up_lab(0.02)
    results = experiment.measure(lab)
    assert "The Teacher's own: 2.0000" in experiment.show(results, tmp_path)
    conditions = experiment.conditions("/teacher")
    assert {row["condition"] for row in results["rows"]} == set(conditions)
    taught = {
        condition: (overrides["teacher.student_weight"], overrides["teacher.ta_weight"])
        for condition, overrides in conditions.items()
        if "teacher.model" in overrides
    }
    assert list(taught.values()) == [(0.5, 0.0), (0.5, 0.0), (0.0, 0.5), (0.5, 0.5)]


def test_patterns_are_compared_at_equal_parameters(load, made_up_lab, tmp_path, monkeypatch):
    patterns = load("patterns.experiment")
    orders = patterns.patterns_of(4)
    assert len(orders) == len(set(orders.values())) == 6
    assert orders[patterns.PAPERS] == (True, False, False, True)
    budgets = []

    def pick(run, output, parameters):
        budgets.append(parameters)
        return "d_ff=28"

    monkeypatch.setattr(patterns, "_pick", pick)
    lab, asked = made_up_lab(0.02)
    results = patterns.EXPERIMENT.measure(lab)
    assert budgets == [8] * 3  # Once for each run: its three budgets are alike here.
    table = patterns.EXPERIMENT.show(results, tmp_path)
    assert "| search" in table and "448 and 28" in table
    assert ["d_ff=448,28,28,448"] in [specs for _, _, specs in asked]


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
