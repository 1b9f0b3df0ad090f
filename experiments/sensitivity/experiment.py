"""How much the ramp, the weight and temperature of distillation, and Shampoo's interval matter."""

import pathlib

from lab.figures import Line, comparison, plot_comparison
from lab.laptop import ALONE, LaptopExperiment
from lab.protocol import Results
from lab.runs import Lab

from matta_jax.sweeps import Overrides

DEFAULT = "default"  # Weight 0.5, a linear ramp over 0.1 of the run, T 1.
LONE, UNTAUGHT = "Student alone", "weight 0"
CONDITIONS: dict[str, Overrides] = {
    DEFAULT: {},
    UNTAUGHT: {"objective.distill_weight": 0.0},
    "weight 1": {"objective.distill_weight": 1.0},
    "weight 2": {"objective.distill_weight": 2.0},
    "no ramp": {"objective.ramp_shape": "constant"},
    "ramp over 0.5": {"objective.distill_ramp": 0.5},
    "T 2": {"objective.temperature": 2.0},
    "T 4": {"objective.temperature": 4.0},
}
SHAMPOO: dict[str, Overrides] = {
    f"Shampoo, every {steps}": {"optimizer.name": "shampoo", "shampoo.precondition_every": steps}
    for steps in (10, 2, 50)
}
SHAMPOO_DEFAULT = "Shampoo, every 10"


class Sensitivity(LaptopExperiment):
    """MatTA, with one setting after another changed."""

    name = "sensitivity"

    def measure(self, lab: Lab) -> Results:
        """Trains all."""
        return {"rows": lab.rows({LONE: ALONE, **CONDITIONS, **SHAMPOO}, self.seeds)}

    def show(self, results: Results, folder: pathlib.Path) -> str:
        """The comparison: with a Student alone, with the default, with Shampoo's own."""
        rows = results["rows"]
        lines = [*_lines(CONDITIONS, DEFAULT), *_lines(SHAMPOO, SHAMPOO_DEFAULT)]
        plot_comparison(rows, [Line(LONE), *lines], folder / "sensitivity.png")

        untaught = Line(UNTAUGHT, "student", (LONE, "student"))
        return comparison(rows, [Line(LONE), untaught, *lines])


def _lines(conditions: dict[str, Overrides], default: str) -> list[Line]:
    """The Students of conditions, each compared with the default's."""
    lines = []
    for name in conditions:
        reference = None if name == default else (default, "student")
        lines.append(Line(name, "student", reference))
    return lines


EXPERIMENT = Sensitivity()
