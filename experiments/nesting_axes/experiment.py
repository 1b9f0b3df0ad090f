"""Width, depth or d_model: which way should a TA of one size be larger than its Student?"""

import pathlib

from lab.figures import Line, comparison, measured_lines, plot_comparison
from lab.protocol import Results
from lab.rung_runs import UNIT, RungExperiment, RungRuns
from lab.rungs import RUNGS, lone_width
from lab.runs import Lab
from ladder.recipes import TWO_POINTS, conditions_of

from matta_jax.sweeps import Overrides

_MODELS = ("student", "ta")
_PLAIN: Overrides = {"nest.d_ff": None, "nest.widths": ()}
# Each has the 61,440 parameters of the width's TA in its layers. A d_model of twice the Student's
# alone has 55,296: d_ff grows with it, as it usually does.
_DEPTH = 12
_D_MODEL, _HEADS, _D_FF = 64, 4, 32


class NestingAxes(RungExperiment):
    """One Student in three TAs of one size; and each TA by itself."""

    name = "nesting_axes"
    # The smallest, on which each condition can have a learning rate of its own.
    rung = RUNGS[0]

    def measure(self, lab: Lab) -> Results:
        """Tunes and trains all."""
        runs = RungRuns(lab, self.rung, self.length)
        return {"rows": runs.rows(self.conditions(), self.seeds)}

    def conditions(self) -> dict[str, Overrides]:
        """The nests, and the models of their sizes that are trained alone."""
        widths = self.rung.widths
        larger = {"num_layers": _DEPTH}
        wider = {"d_model": _D_MODEL, "num_heads": _HEADS, "d_ff": _D_FF}
        two_points = conditions_of(self.rung)[TWO_POINTS]
        return {
            "Student alone": lone_width(widths[0]),
            "width": two_points,
            "width, TA alone": lone_width(widths[-1]),
            "depth": _PLAIN | _within("nest", larger) | two_points,
            "depth, TA alone": lone_width(widths[0]) | _within("model", larger),
            "d_model": {"nest.widths": ()} | _within("nest", wider) | two_points,
            "d_model, TA alone": _PLAIN | _within("model", wider),
        }

    def show(self, results: Results, folder: pathlib.Path) -> str:
        """The comparison."""
        lines = [Line("Student alone")]
        for axis in ("width", "depth", "d_model"):
            alone = f"{axis}, TA alone"
            lines.append(Line(axis, "student", ("Student alone", "student")))
            lines.append(Line(axis, "ta", (alone, "student")))
            lines.append(Line(alone))
        rows = results["rows"]
        lines = measured_lines(rows, lines)
        plot_comparison(rows, lines, folder / "nesting_axes.png", UNIT)
        to_width = [
            Line(axis, model, ("width", model))
            for model in _MODELS
            for axis in ("depth", "d_model")
        ]
        return "\n\n".join(
            [
                "Against models trained alone:",
                comparison(rows, lines, UNIT),
                "Against those of the nest in width, paired by seed:",
                comparison(rows, measured_lines(rows, to_width), UNIT),
            ]
        )


def _within(section: str, fields: dict[str, int]) -> dict[str, int]:
    return {f"{section}.{name}": value for name, value in fields.items()}


EXPERIMENT = NestingAxes()
