"""Width, depth or d_model: which way should a TA of one size be larger than its Student?"""

from laptop import ALONE, Line, comparison, plot_comparison

SEEDS = (0, 1, 2)
NESTS = {
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


def measure(lab):
    """Trains all."""
    return {"rows": lab.rows({"Student alone": ALONE} | NESTS, SEEDS)}


def show(results, folder):
    """The comparison."""
    plot_comparison(results["rows"], LINES, folder / "nesting_axes.png")
    return comparison(results["rows"], LINES)
