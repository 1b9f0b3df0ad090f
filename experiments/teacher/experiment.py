"""What a Teacher adds: to a Student alone, to a Student in its TA, to the TA, to both."""

import pathlib

from lab.books import REPORTED_ON
from lab.figures import Line, comparison, measured_lines, plot_comparison
from lab.protocol import Results
from lab.rung_runs import UNIT, RungExperiment, RungRuns, at_rate, mean_bits
from lab.rungs import RUNGS, lone_width
from lab.runs import Lab
from ladder.recipes import TWO_POINTS, conditions_of

from matta_jax.sweeps import Overrides

ALONE, MATTA = "Student alone", "MatTA"
_TEACHERS_RUNG = RUNGS[-1]
# Of the Teacher and of all that it teaches: what the ladder's sweep chose for them without it.
_RATE = 0.02
_WEIGHT = 0.5


class Teacher(RungExperiment):
    """A frozen model of the largest rung beside runs of the middle one."""

    name = "teacher"

    def measure(self, lab: Lab) -> Results:
        """Trains the Teacher, and then all."""
        largest = lone_width(_TEACHERS_RUNG.widths[-1])
        teachers = RungRuns(lab, _TEACHERS_RUNG, self.length)
        (teacher,) = teachers.train("Teacher", at_rate(largest, _RATE), self.seeds[:1])
        scores = teachers.bits(teacher, REPORTED_ON, ["ta"])["ta"]

        runs = RungRuns(lab, self.rung, self.length)
        rows = runs.rows(self.conditions(str(teacher.workdir)), self.seeds)
        return {"rows": rows, "teacher": mean_bits(scores)}

    def conditions(self, teacher: str) -> dict[str, Overrides]:
        """What is compared, by the Teacher's folder."""

        def taught(student: float, ta: float) -> Overrides:
            return {
                "teacher.model": teacher,
                "teacher.student_weight": student,
                "teacher.ta_weight": ta,
            }

        alone = at_rate(lone_width(self.rung.widths[0]), _RATE)
        matta = at_rate(conditions_of(self.rung)[TWO_POINTS], _RATE)
        return {
            ALONE: alone,
            f"{ALONE}, taught": {**alone, **taught(_WEIGHT, 0.0)},
            MATTA: matta,
            f"{MATTA}, Student taught": {**matta, **taught(_WEIGHT, 0.0)},
            f"{MATTA}, TA taught": {**matta, **taught(0.0, _WEIGHT)},
            f"{MATTA}, both taught": {**matta, **taught(_WEIGHT, _WEIGHT)},
        }

    def show(self, results: Results, folder: pathlib.Path) -> str:
        """The comparison."""
        lines = []
        conditions = list(self.conditions(""))
        for condition in conditions:
            reference = None if condition == ALONE else (ALONE, "student")
            lines.append(Line(condition, "student", reference))
        for condition in conditions:
            if condition.startswith(MATTA):
                reference = None if condition == MATTA else (MATTA, "ta")
                lines.append(Line(condition, "ta", reference))

        rows = results["rows"]
        lines = measured_lines(rows, lines)
        plot_comparison(rows, lines, folder / "teacher.png", UNIT)
        about = f"The Teacher's own: {results['teacher']:.4f} {UNIT}."
        return f"{about}\n\n{comparison(rows, lines, UNIT)}"


EXPERIMENT = Teacher()
