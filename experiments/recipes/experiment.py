"""Recipes beyond the ladder's: what moves the frontier of loss against FLOPs?"""

import json
import pathlib

from lab.protocol import FOLDER, Results
from lab.rung_runs import RungExperiment, RungRuns
from lab.rungs import RUNGS, Rung
from lab.runs import Lab
from ladder import figures, frontier
from ladder.experiment import scored
from ladder.recipes import WITH_A_MIX

from matta_jax.errors import UserError
from matta_jax.sweeps import Overrides

_RATES = {"60k": 0.08, "250k": 0.02}
"""By rung, what the ladder's sweep chose for the recipe with a mix."""
_RUNGS = tuple(rung for rung in RUNGS if rung.name in _RATES)
_FEWER = "a Student of four times the width"
"""Has three of the five sizes, and so no place among the worst of five."""
_OF_THE_LADDER = (WITH_A_MIX, "MatFormer, all sizes")


class Recipes(RungExperiment):
    """Changes of the recipe with a mix, on the two smaller rungs of the ladder; the ladder's own
    figures are what they are compared with.
    """

    name = "recipes"

    def measure(self, lab: Lab) -> Results:
        """Trains and scores the changes. A recipe without all of its runs is left out."""
        rows = []
        for rung in _RUNGS:
            runs = RungRuns(lab, rung, self.length)
            for condition, overrides in self.conditions(rung).items():
                try:
                    rows += scored(runs, condition, overrides, _RATES[rung.name], self.seeds)
                except UserError as error:
                    lab.log(f"{rung.name}, {condition}: {error}")
        if not rows:
            raise UserError("no recipe has all of its runs yet; run this experiment with all seeds")
        return {"rows": rows}

    def conditions(self, rung: Rung) -> dict[str, Overrides]:
        """What is changed of the recipe with a mix, one thing at a time."""
        upper = rung.widths[2:]
        return {
            "one size a step as the mix": {"nest.mix_by": "model"},
            "the TA by itself for 30 %": {"objective.members_start": 0.3},
            "a mix every second step": {"nest.mix_every": 2},
            "no distillation": {
                "objective.distill_weight": 0.0,
                "objective.mix_distill_weight": 0.0,
            },
            # The labels get the weight that distillation has.
            "no distillation, labels twice": {
                "objective.distill_weight": 0.0,
                "objective.mix_distill_weight": 0.0,
                "objective.student_weight": 2.0,
                "objective.mix_weight": 1.0,
            },
            _FEWER: {"model.d_ff": upper[0], "nest.widths": upper},
        }

    def show(self, results: Results, folder: pathlib.Path) -> str:
        """Each against lone models and against the mix, and the frontier."""
        ladder = json.loads((FOLDER / "ladder" / "results.json").read_text())["rows"]
        scores = figures.Scores([*ladder, *results["rows"]])
        five_sizes = [name for name in self.conditions(self.rung) if name != _FEWER]
        # The picture leads to this rung.
        drawn = [name for name in five_sizes if scores.has(self.rung, self.length, name)]
        frontier.plot(scores, folder / "recipes.png", _RUNGS, [*_OF_THE_LADDER, *drawn])
        parts = []
        for rung in reversed(_RUNGS):
            conditions = self.conditions(rung)
            measured = [name for name in conditions if scores.has(rung, self.length, name)]
            recipes = [*_OF_THE_LADDER, *measured]
            parts += [
                figures.heading(rung, self.length),
                "Per cent against a model of that size trained alone:",
                figures.table(scores, rung, self.length, recipes),
                "Per cent against the same size of the recipe with a mix, paired by seed:",
                figures.paired_table(scores, rung, self.length, WITH_A_MIX, measured),
            ]
        return "\n\n".join(parts)


EXPERIMENT = Recipes()
