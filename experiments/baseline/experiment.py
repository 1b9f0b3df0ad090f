"""Does the Student learn better inside its TA? Student and TA alone against both together."""

from laptop import ALONE, TA_ALONE, Line, comparison, plot_comparison

SEEDS = (0, 1, 2)
MIX = {"nest.mix_per_step": 1}


def conditions(lab):
    """What is compared; the longer runs take the FLOPs of MatTA without mixes."""
    steps = lab.config.train.num_steps
    longer = lambda own: own | {"train.num_steps": round(steps * lab.flops({}) / lab.flops(own))}
    return {
        "Student alone": ALONE,
        "MatTA": {},
        "MatTA and a mix": MIX,
        "TA alone": TA_ALONE,
        "Student alone, FLOPs of MatTA": longer(ALONE),
        "TA alone, FLOPs of MatTA": longer(TA_ALONE),
    }


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


def measure(lab):
    """Trains all."""
    return {"rows": lab.rows(conditions(lab), SEEDS)}


def show(results, folder):
    """The comparison."""
    plot_comparison(results["rows"], LINES, folder / "baseline.png")
    return comparison(results["rows"], LINES)
