"""How much the ramp, the weight and temperature of distillation, and Shampoo's interval matter."""

from laptop import ALONE, Line, comparison, plot_comparison

SEEDS = (0, 1, 2)
DEFAULT = "default"  # Weight 0.5, a linear ramp over 0.1 of the run, T 1.
LONE, UNTAUGHT = "Student alone", "weight 0"
CONDITIONS = {
    DEFAULT: {},
    UNTAUGHT: {"objective.distill_weight": 0.0},
    "weight 1": {"objective.distill_weight": 1.0},
    "weight 2": {"objective.distill_weight": 2.0},
    "no ramp": {"objective.ramp_shape": "constant"},
    "ramp over 0.5": {"objective.distill_ramp": 0.5},
    "T 2": {"objective.temperature": 2.0},
    "T 4": {"objective.temperature": 4.0},
}
SHAMPOO = {
    f"Shampoo, every {steps}": {"optimizer.name": "shampoo", "shampoo.precondition_every": steps}
    for steps in (10, 2, 50)
}


def measure(lab):
    """Trains all."""
    return {"rows": lab.rows({LONE: ALONE} | CONDITIONS | SHAMPOO, SEEDS)}


def show(results, folder):
    """The comparison: with a Student alone, with the default, with Shampoo's own."""
    rows, base, first = results["rows"], (DEFAULT, "student"), next(iter(SHAMPOO))
    lines = [Line(name, "student", None if name == DEFAULT else base) for name in CONDITIONS]
    lines += [
        Line(name, "student", None if name == first else (first, "student")) for name in SHAMPOO
    ]
    plot_comparison(rows, [Line(LONE), *lines], folder / "sensitivity.png")
    return comparison(rows, [Line(LONE), Line(UNTAUGHT, "student", (LONE, "student")), *lines])
