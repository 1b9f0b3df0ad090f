"""Do Shampoo and MatTA together gain more than the sum of their gains? Each cell with its own best
learning rate.
"""

import pathlib
import shutil

from lab.books import TUNED_ON, excerpt
from lab.figures import Line, comparison, plot_comparison
from lab.laptop import ALONE, LaptopExperiment
from lab.protocol import Results
from lab.runs import Lab
from lab.statistics import Row, differences, format_interval, seed_values

import matta_jax
from matta_jax.sweeps import Overrides

TUNING_SEED = 100
RATES = (2e-3, 4e-3, 8e-3)
SHAMPOO: Overrides = {"optimizer.name": "shampoo"}
CELLS: dict[str, Overrides] = {
    "AdamW, alone": ALONE,
    "AdamW, MatTA": {},
    "Shampoo, alone": {**ALONE, **SHAMPOO},
    "Shampoo, MatTA": SHAMPOO,
}
BASELINE = "AdamW, alone"
PICTURED_CELL, PICTURED_SEED = "Shampoo, MatTA", 0


class SuperAdditivity(LaptopExperiment):
    """{AdamW, Shampoo} x {alone, MatTA}: four cells, and their interaction."""

    name = "super_additivity"

    def measure(self, lab: Lab) -> Results:
        """Chooses each cell's learning rate on the validation text, with a seed of its own; trains
        all seeds with it.
        """
        tuning = _tune(lab)
        rates = {cell: min(losses, key=losses.__getitem__) for cell, losses in tuning.items()}
        conditions = _conditions(rates, usual_rate=lab.config.optimizer.learning_rate)
        rows = lab.rows(conditions, self.seeds)

        pictured = lab.train({PICTURED_CELL: conditions[PICTURED_CELL]}, (PICTURED_SEED,))
        copy_picture(pictured[PICTURED_CELL, PICTURED_SEED].workdir)

        # JSON has no numbers as keys.
        stored_tuning = {}
        for cell, losses in tuning.items():
            stored_tuning[cell] = {str(rate): loss for rate, loss in losses.items()}
        return {"rows": rows, "tuning": stored_tuning, "rates": rates}

    def show(self, results: Results, folder: pathlib.Path) -> str:
        """The cells, the gains and their interaction, the learning rates that were tried."""
        rows = results["rows"]
        lines = _lines()
        plot_comparison(rows, lines, folder / "super_additivity.png")

        parts = [
            comparison(rows, lines),
            "Interaction, gain(both) - gain(Shampoo) - gain(MatTA), Student, nats: "
            f"**{format_interval(_interaction(rows), signed=True)}**.",
            "Learning rates, by the Student's loss on the validation text (one run each, a seed of "
            "its own):",
            _tuning_table(results["tuning"], results["rates"]),
        ]
        return "\n\n".join(parts)


def _tune(lab: Lab) -> dict[str, dict[float, float]]:
    """The Student's loss on the validation text, by cell and learning rate."""
    validation: Overrides = {"data.eval_source": f"text:{excerpt(lab.workdir, TUNED_ON)}"}
    trials = {}
    for cell, overrides in CELLS.items():
        for rate in RATES:
            trial = {**overrides, "optimizer.learning_rate": rate, **validation}
            trials[f"{cell}, {rate}"] = trial

    runs = lab.train(trials, (TUNING_SEED,))

    losses: dict[str, dict[float, float]] = {cell: {} for cell in CELLS}
    for cell in CELLS:
        for rate in RATES:
            losses[cell][rate] = runs[f"{cell}, {rate}", TUNING_SEED].figures["student"]
    return losses


def _conditions(rates: dict[str, float], *, usual_rate: float) -> dict[str, Overrides]:
    """The cells with their learning rates."""
    conditions: dict[str, Overrides] = {}
    for cell, overrides in CELLS.items():
        # A run's name is its overrides: at the usual rate other experiments have the same run.
        has_usual_rate = rates[cell] == usual_rate
        rate = {} if has_usual_rate else {"optimizer.learning_rate": rates[cell]}
        conditions[cell] = {**overrides, **rate}
    return conditions


def copy_picture(workdir: pathlib.Path) -> None:
    """Copies the picture of a layer's preconditioners, with the blocks of Student and TA, beside
    this file.
    """
    report = matta_jax.report(workdir, weight="blocks/0/mlp/w_in", layer=1)
    picture = next(file for file in report.files if file.name == "preconditioners.png")
    shutil.copy(picture, pathlib.Path(__file__).with_name("preconditioners.png"))


def _lines() -> list[Line]:
    lines = []
    for cell in CELLS:
        reference = None if cell == BASELINE else (BASELINE, "student")
        lines.append(Line(cell, "student", reference))
    return lines + [Line(cell, "ta") for cell in CELLS if "MatTA" in cell]


def _interaction(rows: list[Row]) -> list[float]:
    """By seed, how much more Shampoo and MatTA gain together than the sum of their gains."""
    baseline = seed_values(rows, BASELINE, "student")

    def gains(cell: str) -> list[float]:
        return differences(baseline, seed_values(rows, cell, "student"))

    beyond_shampoo = differences(gains("Shampoo, MatTA"), gains("Shampoo, alone"))
    return differences(beyond_shampoo, gains("AdamW, MatTA"))


def _tuning_table(tuning: dict[str, dict[str, float]], rates: dict[str, float]) -> str:
    header = "| cell | " + " | ".join(str(rate) for rate in RATES) + " | chosen |"
    rule = "|" + "---|" * (len(RATES) + 2)

    lines = [header, rule]
    for cell, losses in tuning.items():
        cells = " | ".join(f"{loss:.4f}" for loss in losses.values())
        lines.append(f"| {cell} | {cells} | {rates[cell]} |")
    return "\n".join(lines)


EXPERIMENT = SuperAdditivity()
