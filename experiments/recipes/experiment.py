"""Recipes beyond the ladder's: what moves the frontier of loss against FLOPs?"""

import json
import pathlib

from lab.protocol import FOLDER, Results
from lab.rung_runs import RungExperiment, RungRuns
from lab.runs import Lab
from ladder import figures, frontier
from ladder.experiment import scored
from ladder.recipes import WITH_A_MIX

from matta_jax.errors import UserError
from matta_jax.sweeps import Overrides

_RATE = 0.02
"""What the ladder's sweep chose on this rung for lone models, for a mix and for the sum."""
_OF_THE_LADDER = (WITH_A_MIX, "MatFormer, all sizes")


class Recipes(RungExperiment):
    """Changes of the recipe with a mix, on the ladder's middle rung; the ladder's own figures are
    what they are compared with.
    """

    name = "recipes"

    def measure(self, lab: Lab) -> Results:
        """Trains and scores the changes. A recipe without all of its runs is left out."""
        runs = RungRuns(lab, self.rung, self.length)
        rows = []
        for condition, overrides in self.conditions().items():
            try:
                rows += scored(runs, condition, overrides, _RATE, self.seeds)
            except UserError as error:
                lab.log(f"{condition}: {error}")
        if not rows:
            raise UserError("no recipe has all of its runs yet; run this experiment with all seeds")
        return {"rows": rows}

    def conditions(self) -> dict[str, Overrides]:
        """What is changed of the recipe with a mix, one thing at a time."""
        return {
            "one size a step as the mix": {"nest.mix_by": "model"},
            "the TA by itself for 30 %": {"objective.members_start": 0.3},
            "a mix every second step": {"nest.mix_every": 2},
            "no distillation": {
                "objective.distill_weight": 0.0,
                "objective.mix_distill_weight": 0.0,
            },
        }

    def show(self, results: Results, folder: pathlib.Path) -> str:
        """Each against lone models and against the mix, and the frontier."""
        ladder = json.loads((FOLDER / "ladder" / "results.json").read_text())["rows"]
        scores = figures.Scores([*ladder, *results["rows"]])
        conditions = self.conditions()
        measured = [name for name in conditions if scores.has(self.rung, self.length, name)]
        recipes = [*_OF_THE_LADDER, *measured]
        frontier.plot(scores, folder / "recipes.png", [self.rung], recipes)
        return "\n\n".join(
            [
                "Per cent against a model of that size trained alone:",
                figures.table(scores, self.rung, self.length, recipes),
                "Per cent against the same size of the recipe with a mix, paired by seed:",
                figures.paired_table(scores, self.rung, self.length, WITH_A_MIX, measured),
            ]
        )


EXPERIMENT = Recipes()
