"""Width, depth or d_model: which way should a TA of one size be larger than its Student?"""

import pathlib

from lab.figures import Line, comparison, plot_comparison
from lab.laptop import ALONE, LaptopExperiment
from lab.protocol import Results
from lab.runs import Lab

from matta_jax.sweeps import Overrides

NESTS: dict[str, Overrides] = {
    "width": {},
    "depth": {"nest.d_ff": None, "nest.widths": (), "nest.num_layers": 13},
    "d_model": {"nest.d_ff": None, "nest.widths": (), "nest.d_model": 256},
}
"""TAs of 1.86, 1.83 and 1.87 million parameters around the same Student of 0.93."""
LINES = [
    Line("Student alone"),
    *(Line(name, "student", ("Student alone", "student")) for name in NESTS),
    Line("width", "ta"),
    *(Line(name, "ta", ("width", "ta")) for name in NESTS if name != "width"),
]


class NestingAxes(LaptopExperiment):
    """One Student in three TAs of one size."""

    name = "nesting_axes"

    def measure(self, lab: Lab) -> Results:
        """Trains all."""
        return {"rows": lab.rows({"Student alone": ALONE, **NESTS}, self.seeds)}

    def show(self, results: Results, folder: pathlib.Path) -> str:
        """The comparison."""
        plot_comparison(results["rows"], LINES, folder / "nesting_axes.png")
        return comparison(results["rows"], LINES)


EXPERIMENT = NestingAxes()
