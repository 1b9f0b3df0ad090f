"""The ladder: what it trains, what it tunes on, and what its table says."""

import json

import pytest

from matta_jax.config import override


def test_each_recipe_has_the_rate_that_is_best_on_the_validation_text(
    load, made_up_lab, tmp_path, monkeypatch
):
    recipes, experiment = load("ladder.recipes"), load("ladder.experiment")
    monkeypatch.setattr(recipes, "RUNGS", recipes.RUNGS[:1])
    # A size in a nest is 2 % worse than alone.
    lab, _ = made_up_lab(0.02, excess=lambda name: 0.0 if name.startswith("alone") else 0.02)
    results = experiment.EXPERIMENT.measure(lab)

    assert {row["learning_rate"] for row in results["rows"]} == {0.02}
    assert {row["seed"] for row in results["rows"]} == set(experiment.EXPERIMENT.seeds)
    assert {row["length"] for row in results["rows"]} == {20, 100}
    table = experiment.EXPERIMENT.show(results, tmp_path)
    assert "61,440 parameters" in table and "| with a mix: %" in table
    # A cell for each width, and one in the trend.
    assert table.count("+2.0 ± 0.0") == 2 * 6 * (5 + 2)
    assert (tmp_path / "frontier.png").stat().st_size > 0

    figures, frontier = load("ladder.figures"), load("ladder.frontier")
    scores = figures.Scores(results["rows"])
    rungs = figures.whole_rungs(scores, 20)
    assert tuple(rungs) == recipes.RUNGS
    (point,) = frontier.recipe_points(scores, "with a mix", rungs)
    assert point == pytest.approx((1.0, 2.0, 0.0), abs=0.005)  # All cost alike.
    assert "at +2.0 % for 1.0 x the FLOPs" in frontier.verdict({"with a mix": [point]})


def test_the_goal_is_met_by_both_of_its_numbers(load):
    verdict = load("ladder.frontier").verdict
    assert verdict({"cheap": [(1.4, 0.9, 0.1)]}).startswith("The goal is met: ")
    for missed in ((1.6, 0.9, 0.1), (1.4, 1.1, 0.1)):
        assert verdict({"missed": [missed]}).startswith("No recipe is at the goal yet: ")


def test_the_largest_rung_takes_the_rates_of_the_middle_one(load, made_up_lab):
    experiment, rungs = load("ladder.experiment"), load("lab.rungs")
    lab, asked = made_up_lab(0.08)
    runs = load("lab.rung_runs").RungRuns(lab, rungs.RUNGS[2], 20)
    assert experiment.best_rate(runs, "alone 768") == 0.08
    assert {seed for seed, *_ in asked} == {100}
    assert not (lab.workdir / "1M_20").exists()


def test_the_recipes_are_valid_at_each_rung(load):
    recipes, rungs = load("ladder.recipes"), load("lab.rungs")
    for rung in rungs.RUNGS:
        config = rungs.rung_config(rung, 20, {"source": "stdlib"})
        for overrides in recipes.conditions_of(rung).values():
            override(config, overrides)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_runs_from_its_command(load, tmp_path, monkeypatch):
    """The longest road of an experiment: texts, tuning, runs, scores, table and picture; a second
    call trains nothing again.
    """
    rungs, experiment, texts = load("lab.rungs"), load("ladder.experiment"), load("lab.texts")
    recipes, rung_runs = load("ladder.recipes"), load("lab.rung_runs")
    text = json.dumps({"text": "the quick brown fox jumps over the lazy dog " * 30}) + "\n"
    texts.training_file(tmp_path).write_text(text * 3)
    texts.tuning_file(tmp_path).write_text(text)
    for kind in texts.KINDS:
        for side in ("validation", "test"):
            texts.held_out_file(tmp_path, kind, side).write_text(text)

    monkeypatch.setattr(rungs.Rung, "widths", property(lambda self: (8, 16)))
    small = rungs.Rung("small", num_layers=1, d_model=8, num_heads=1, batch_size=2)
    all_of = recipes.conditions_of
    names = [*(recipes.alone(width) for width in small.widths), "with a mix"]
    monkeypatch.setattr(recipes, "RUNGS", (small,))
    monkeypatch.setattr(recipes, "LENGTHS", {"small": (1,)})
    for module in (experiment, load("ladder.figures")):
        conditions_of = lambda rung: {name: all_of(rung)[name] for name in names}
        monkeypatch.setattr(module, "conditions_of", conditions_of)
    monkeypatch.setattr(load("ladder.figures"), "RUNGS", (small,))
    monkeypatch.setattr(load("ladder.figures"), "LENGTHS", {"small": (1,)})
    monkeypatch.setattr(experiment.Ladder, "seeds", (0, 1))
    monkeypatch.setattr(experiment.Ladder, "rung", small)
    config_of = rungs.rung_config
    one_device = {"mesh.data": 1}
    monkeypatch.setattr(
        rung_runs, "rung_config", lambda *facts: override(config_of(*facts), one_device)
    )

    lines = []
    lab = load("lab.runs").Lab(
        experiment.EXPERIMENT.config(tmp_path, tmp_path), tmp_path, tmp_path, None, lines.append
    )
    results = experiment.EXPERIMENT.measure(lab)
    assert len(results["rows"]) == 2 * (2 + 2) and len(lines) >= 3 * (3 + 2)
    table = experiment.EXPERIMENT.show(results, tmp_path)
    assert "512 parameters" in table and "| with a mix: %" in table
    assert (tmp_path / "ladder.png").is_file()

    lines.clear()
    assert experiment.EXPERIMENT.measure(lab) == results and not lines


def test_the_worst_size_is_the_one_that_loses_most(load):
    figures, rung = load("ladder.figures"), load("lab.rungs").RUNGS[0]
    losses = {width: 1 + i / 100 for i, width in enumerate(rung.widths)}
    losses[rung.widths[2]] = 1.5
    rows = []
    for seed in (0, 1):
        for width in rung.widths:
            about = {"rung": rung.name, "length": 20, "seed": seed, "d_ff": width, "tflops": 1.0}
            lone = dict.fromkeys(load("lab.texts").KINDS, 2.0)
            nested = dict.fromkeys(load("lab.texts").KINDS, 2.0 * losses[width])
            rows.append(about | lone | {"condition": f"alone {width}"})
            rows.append(about | nested | {"condition": "with a mix"})
    worst = figures.Scores(rows).worst(rung, 20, "with a mix")
    assert worst == pytest.approx([50.0, 50.0])
