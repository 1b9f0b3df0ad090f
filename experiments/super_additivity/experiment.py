"""Do second-order optimisers and MatTA together gain more than the sum of their gains? Each cell
with its own best learning rate.
"""

import pathlib
import shutil

from lab.figures import Line, comparison, measured_lines, plot_comparison
from lab.protocol import Results
from lab.rung_runs import UNIT, RungExperiment, RungRuns, at_rate
from lab.rungs import lone_width
from lab.runs import Lab
from lab.statistics import Row, differences, format_interval, seed_values
from ladder.recipes import TWO_POINTS, conditions_of

import matta_jax
from matta_jax.sweeps import Overrides

FIRST_ORDER = "AdamW"
SECOND_ORDER = ("Shampoo", "Muon")
PICTURED_CELL, PICTURED_SEED = "Shampoo, MatTA", 0


class SuperAdditivity(RungExperiment):
    """{AdamW, Shampoo, Muon} x {alone, MatTA}: six cells, and two interactions."""

    name = "super_additivity"
    seeds = (0, 1, 2, 3, 4)

    def measure(self, lab: Lab) -> Results:
        """Chooses each cell's learning rate on the validation text, with a seed of its own; trains
        all seeds with it.
        """
        runs = RungRuns(lab, self.rung, self.length)
        rows = runs.rows(self.cells(), self.seeds)

        rates = {row["condition"]: row["learning_rate"] for row in rows}
        if PICTURED_CELL in rates:
            overrides = at_rate(self.cells()[PICTURED_CELL], rates[PICTURED_CELL])
            (pictured,) = runs.train(PICTURED_CELL, overrides, (PICTURED_SEED,))
            copy_picture(pictured.workdir)
        return {"rows": rows}

    def cells(self) -> dict[str, Overrides]:
        """The overrides of each optimiser, alone and with MatTA. Muon is the ladder's own."""
        alone = lone_width(self.rung.widths[0])
        matta = conditions_of(self.rung)[TWO_POINTS]

        cells: dict[str, Overrides] = {}
        for optimizer in (FIRST_ORDER, *SECOND_ORDER):
            rule = {} if optimizer == "Muon" else {"optimizer.name": optimizer.lower()}
            cells[f"{optimizer}, alone"] = {**alone, **rule}
            cells[f"{optimizer}, MatTA"] = {**matta, **rule}
        return cells

    def show(self, results: Results, folder: pathlib.Path) -> str:
        """The cells, the gains and their interactions, the learning rates that were chosen."""
        rows = results["rows"]
        lines = measured_lines(rows, _lines(list(self.cells())))
        plot_comparison(rows, lines, folder / "super_additivity.png", UNIT)

        parts = [comparison(rows, lines, UNIT)]
        measured = {row["condition"] for row in rows}
        for optimizer in SECOND_ORDER:
            needed = {f"{rule}, {kind}" for rule in (FIRST_ORDER, optimizer) for kind in _KINDS}
            if needed <= measured:
                gain = format_interval(_interaction(rows, optimizer), signed=True)
                parts.append(
                    f"Interaction, gain(both) - gain({optimizer}) - gain(MatTA), Student, {UNIT}: "
                    f"**{gain}**."
                )
        rates = {row["condition"]: row["learning_rate"] for row in rows}
        chosen = "; ".join(f"{cell} {rate:g}" for cell, rate in rates.items())
        parts.append(f"Learning rates, by the validation text and a seed of their own: {chosen}.")
        return "\n\n".join(parts)


_KINDS = ("alone", "MatTA")


def copy_picture(workdir: pathlib.Path) -> None:
    """Copies the picture of a layer's preconditioners, with the blocks of Student and TA, beside
    this file.
    """
    report = matta_jax.report(workdir, weight="blocks/0/mlp/w_in", layer=1)
    picture = next(file for file in report.files if file.name == "preconditioners.png")
    shutil.copy(picture, pathlib.Path(__file__).with_name("preconditioners.png"))


def _lines(cells: list[str]) -> list[Line]:
    baseline = f"{FIRST_ORDER}, alone"
    lines = []
    for cell in cells:
        reference = None if cell == baseline else (baseline, "student")
        lines.append(Line(cell, "student", reference))
    return lines + [Line(cell, "ta") for cell in cells if cell.endswith("MatTA")]


def _interaction(rows: list[Row], optimizer: str) -> list[float]:
    """By seed, how much more an optimiser and MatTA gain together than the sum of their gains."""
    baseline = seed_values(rows, f"{FIRST_ORDER}, alone", "student")

    def gains(cell: str) -> list[float]:
        return differences(baseline, seed_values(rows, cell, "student"))

    beyond_optimizer = differences(gains(f"{optimizer}, MatTA"), gains(f"{optimizer}, alone"))
    return differences(beyond_optimizer, gains(f"{FIRST_ORDER}, MatTA"))


EXPERIMENT = SuperAdditivity()
