"""Does the Student learn better inside its TA? Student and TA alone against both together."""

import pathlib

from lab.figures import Line, comparison, plot_comparison
from lab.laptop import ALONE, TA_ALONE, LaptopExperiment
from lab.protocol import Results
from lab.runs import Lab

from matta_jax.sweeps import Overrides

MIX: Overrides = {"nest.mix_per_step": 1}
LINES = [
    Line("Student alone"),
    Line("MatTA", "student", ("Student alone", "student")),
    Line("MatTA and a mix", "student", ("Student alone", "student")),
    Line("Student alone, FLOPs of MatTA", "student", ("MatTA", "student")),
    Line("TA alone", "student"),
    Line("MatTA", "ta", ("TA alone", "student")),
    Line("MatTA and a mix", "ta", ("TA alone", "student")),
    Line("TA alone, FLOPs of MatTA", "student", ("MatTA", "ta")),
]


class Baseline(LaptopExperiment):
    """Both together against each alone, at equal steps and at equal FLOPs."""

    name = "baseline"

    def measure(self, lab: Lab) -> Results:
        """Trains all."""
        return {"rows": lab.rows(conditions(lab), self.seeds)}

    def show(self, results: Results, folder: pathlib.Path) -> str:
        """The comparison."""
        title = "Student and TA: each trained alone, and both together (MatTA)"
        plot_comparison(results["rows"], LINES, folder / "baseline.png", title=title)
        return comparison(results["rows"], LINES)


def conditions(lab: Lab) -> dict[str, Overrides]:
    """What is compared; the longer runs take the FLOPs of MatTA without mixes."""
    steps = lab.config.train.num_steps

    def longer(overrides: Overrides) -> Overrides:
        equal_steps = steps * lab.flops({}) / lab.flops(overrides)
        return {**overrides, "train.num_steps": round(equal_steps)}

    return {
        "Student alone": ALONE,
        "MatTA": {},
        "MatTA and a mix": MIX,
        "TA alone": TA_ALONE,
        "Student alone, FLOPs of MatTA": longer(ALONE),
        "TA alone, FLOPs of MatTA": longer(TA_ALONE),
    }


EXPERIMENT = Baseline()
