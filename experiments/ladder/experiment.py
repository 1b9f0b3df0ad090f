"""The ladder: is each size of one run as good as a model trained alone, as models grow?"""

import pathlib
from collections.abc import Sequence
from typing import Any

from lab.books import REPORTED_ON
from lab.protocol import Results
from lab.rung_runs import RungExperiment, RungRuns, SeedRun, at_rate
from lab.rungs import RUNGS, Rung
from lab.runs import Lab
from ladder import figures, frontier
from ladder.recipes import TWO_POINTS, conditions_of, settings

from matta_jax.errors import UserError
from matta_jax.sweeps import Overrides


class Ladder(RungExperiment):
    """Recipes by sizes and lengths; each with a learning rate of its own."""

    name = "ladder"

    def measure(self, lab: Lab) -> Results:
        """Tunes, trains and scores rung by rung. Where a process trains some seeds alone, a recipe
        without all of its runs is left out: the first rungs can be read while the last ones train.
        """
        rows = []
        for rung, length in settings():
            runs = RungRuns(lab, rung, length)
            for condition, overrides in conditions_of(rung).items():
                try:
                    rate = best_rate(runs, condition)
                    rows += scored(runs, condition, overrides, rate, self.seeds)
                except UserError as error:
                    lab.log(f"{rung.name}, {length} tokens a parameter, {condition}: {error}")
        if not rows:
            raise UserError("no recipe has all of its runs yet; run this experiment with all seeds")
        return {"rows": rows}

    def show(self, results: Results, folder: pathlib.Path) -> str:
        """A table for each rung and length, and the pictures of what nesting costs."""
        scores = figures.Scores(results["rows"])
        figures.plot(scores, folder / "ladder.png")
        rungs = figures.whole_rungs(scores, frontier.LENGTH)[-2:]
        if rungs:
            frontier.plot(scores, folder / "frontier.png", rungs, figures.recipes_of(rungs[-1]))
        return figures.tables(scores)


def scored(
    runs: RungRuns, condition: str, overrides: Overrides, rate: float, seeds: Sequence[int]
) -> list[dict[str, Any]]:
    """Trains a recipe with a learning rate; returns a row for each seed and size."""
    rung = runs.rung
    tuned = at_rate(overrides, rate)
    about = {"rung": rung.name, "length": runs.length, "condition": condition}
    about |= {"learning_rate": rate, "tflops": runs.tflops(tuned)}

    rows = []
    for run in runs.train(condition, tuned, seeds):
        rows += [about | row for row in size_rows(runs, run, _specs_of(rung, overrides))]
    return rows


def size_rows(runs: RungRuns, run: SeedRun, specs: dict[int, str]) -> list[dict[str, Any]]:
    """A row for each size of a run: its seed, d_ff, parameters and bits per byte of both texts."""
    scores = runs.bits(run, REPORTED_ON, list(specs.values()))
    return [{"seed": run.seed, "d_ff": width, **scores[spec]} for width, spec in specs.items()]


def best_rate(runs: RungRuns, condition: str) -> float:
    """The learning rate of the least loss over all sizes, or those alone that it trains."""
    rung = runs.rung
    if rung.tuned_at is not None:
        smaller = RUNGS[rung.tuned_at]
        position = list(conditions_of(rung)).index(condition)
        tuned_condition = list(conditions_of(smaller))[position]
        return best_rate(RungRuns(runs.whole_lab, smaller, runs.length), tuned_condition)

    overrides = conditions_of(rung)[condition]
    specs = list(_specs_of(rung, overrides).values())
    if condition == TWO_POINTS:
        # What lies between is not trained: far worse, it would decide alone.
        specs = [specs[0], specs[-1]]
    return runs.best_rate(condition, overrides, specs)


def _specs_of(rung: Rung, overrides: Overrides) -> dict[int, str]:
    """The spec of each size that a run has."""
    widths = overrides.get("nest.widths", rung.widths)
    if not widths:
        return {overrides["model.d_ff"]: "ta"}
    return {width: f"d_ff={width}" for width in widths}


EXPERIMENT = Ladder()
