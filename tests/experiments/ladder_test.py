"""The ladder: what it trains, what it tunes on, and what its table says."""

import json
import pathlib

import pytest

from matta_jax.config import override


@pytest.fixture
def ladder(load, monkeypatch):
    """Its modules with one rung, whose runs are made up: a worse rate is worse."""
    rungs, experiment, texts = load("ladder.rungs"), load("ladder.experiment"), load("ladder.texts")
    monkeypatch.setattr(rungs, "RUNGS", rungs.RUNGS[:1])
    asked = []

    def measured(recipe, run, side):
        asked.append((recipe.condition, run.seed, side))
        rate = float(run.workdir.name)
        widths = recipe.rung.widths
        if "model.d_ff" in recipe.overrides:
            widths = (recipe.overrides["model.d_ff"],)
        # A size in a nest is 2 % worse than alone, the best rate 0.02.
        worse = 1.0 if recipe.condition.startswith("alone") else 1.02
        loss = worse * (2 + abs(rate - 0.02) + run.seed / 100)
        return [
            {"d_ff": width, "parameters": 8 * width, **dict.fromkeys(texts.KINDS, loss)}
            for width in widths
        ]

    def train(self, conditions, seeds):
        trained = {}
        for name, overrides in conditions.items():
            rate = override(self.config, overrides).optimizer.learning_rate
            for seed in seeds:
                folder = self.workdir / name / str(seed) / f"{rate}"
                folder.mkdir(parents=True, exist_ok=True)
                trained[name, seed] = load("lab.runs").Trained(folder, {})
        return trained

    lab = load("lab.runs").Lab
    monkeypatch.setattr(lab, "train", train)
    monkeypatch.setattr(lab, "flops", lambda self, overrides: 1e9)
    monkeypatch.setattr(experiment._Recipe, "_measured", measured)
    return experiment, asked


def test_each_recipe_has_the_rate_that_is_best_on_the_validation_text(ladder, load, tmp_path):
    experiment, asked = ladder
    ladder_run = experiment.EXPERIMENT
    config = ladder_run.config(pathlib.Path("/data"), tmp_path)
    lab = load("lab.runs").Lab(config, pathlib.Path("/data"), tmp_path, None, print)
    results = ladder_run.measure(lab)

    assert {row["learning_rate"] for row in results["rows"]} == {0.02}
    assert {row["seed"] for row in results["rows"]} == set(ladder_run.seeds)
    assert {row["length"] for row in results["rows"]} == {20, 100}
    # Nothing is tuned on the text that is reported.
    assert {(seed == 100, side) for _, seed, side in asked} == {
        (True, "validation"),
        (False, "test"),
    }
    table = ladder_run.show(results, tmp_path)
    assert "61,440 parameters" in table and "| with a mix: %" in table
    # A cell for each width, and one in the trend.
    assert table.count("+2.0 ± 0.0") == 2 * 6 * (5 + 1)


def test_the_rungs_are_sizes_and_their_lengths(load):
    rungs = load("ladder.rungs")
    assert [rung.parameters for rung in rungs.RUNGS] == [61_440, 250_880, 1_105_920]
    for rung in rungs.RUNGS:
        tokens = rung.num_steps(20) * rung.batch_size * rungs.SEQ_LEN
        assert tokens == pytest.approx(20 * rung.parameters, rel=0.01)
        config = rungs.rung_config(rung, 20, {"source": "stdlib"})
        for overrides in rungs.conditions_of(rung).values():
            override(config, overrides)


@pytest.mark.parametrize(("best", "tried"), [(0.02, 3), (0.07, 5), (0.006, 5), (9.0, 6)])
def test_the_grid_of_rates_goes_on_where_the_best_is_at_its_end(load, best, tried):
    asked = []

    def loss_of(rate):
        asked.append(rate)
        return abs(rate - best)

    rate = load("ladder.experiment").best_of_grid(loss_of, (0.01, 0.02, 0.04))
    assert rate == min(asked, key=lambda rate: abs(rate - best))
    assert len(set(asked)) == len(asked) == tried


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_runs_from_its_command(load, tmp_path, monkeypatch):
    """The longest road of an experiment: texts, tuning, runs, scores, table and picture; a second
    call trains nothing again.
    """
    rungs, experiment, texts = load("ladder.rungs"), load("ladder.experiment"), load("ladder.texts")
    text = json.dumps({"text": "the quick brown fox jumps over the lazy dog " * 30}) + "\n"
    texts.training_file(tmp_path).write_text(text * 3)
    texts.tuning_file(tmp_path).write_text(text)
    for kind in texts.KINDS:
        for side in ("validation", "test"):
            texts.held_out_file(tmp_path, kind, side).write_text(text)

    monkeypatch.setattr(rungs.Rung, "widths", property(lambda self: (8, 16)))
    small = rungs.Rung("small", num_layers=1, d_model=8, num_heads=1, batch_size=2)
    all_of = rungs.conditions_of
    names = [*(rungs.alone(width) for width in small.widths), "with a mix"]
    monkeypatch.setattr(rungs, "RUNGS", (small,))
    monkeypatch.setattr(rungs, "LENGTHS", {"small": (1,)})
    for module in (experiment, load("ladder.figures")):
        conditions_of = lambda rung: {name: all_of(rung)[name] for name in names}
        monkeypatch.setattr(module, "conditions_of", conditions_of)
    monkeypatch.setattr(load("ladder.figures"), "RUNGS", (small,))
    monkeypatch.setattr(load("ladder.figures"), "LENGTHS", {"small": (1,)})
    monkeypatch.setattr(experiment.Ladder, "seeds", (0, 1))
    config_of = rungs.rung_config
    one_device = {"mesh.data": 1}
    monkeypatch.setattr(
        experiment, "rung_config", lambda *facts: override(config_of(*facts), one_device)
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
