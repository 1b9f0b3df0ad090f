"""Do Shampoo and MatTA together gain more than the sum of their gains? Each cell with its own best
learning rate.
"""

import pathlib
import shutil

from laptop import (
    ALONE,
    TUNED_ON,
    Line,
    comparison,
    differences,
    excerpt,
    of,
    plot_comparison,
    shown,
)

import matta_jax

SEEDS = (0, 1, 2)
TUNING_SEED = 100
RATES = (2e-3, 4e-3, 8e-3)
SHAMPOO = {"optimizer.name": "shampoo"}
CELLS = {
    "AdamW, alone": ALONE,
    "AdamW, MatTA": {},
    "Shampoo, alone": ALONE | SHAMPOO,
    "Shampoo, MatTA": SHAMPOO,
}
BASELINE = "AdamW, alone"
PICTURED = ("Shampoo, MatTA", 0)


def measure(lab):
    """Chooses each cell's learning rate on the validation text, with a seed of its own; trains all
    seeds with it.
    """
    tuned_on = {"data.eval_source": f"text:{excerpt(lab.workdir, TUNED_ON)}"}
    tried = {
        (cell, rate): own | {"optimizer.learning_rate": rate} | tuned_on
        for cell, own in CELLS.items()
        for rate in RATES
    }
    found = lab.train(
        {f"{cell}, {rate}": own for (cell, rate), own in tried.items()}, (TUNING_SEED,)
    )
    losses = {
        cell: {rate: found[f"{cell}, {rate}", TUNING_SEED].figures["student"] for rate in RATES}
        for cell in CELLS
    }
    best = {cell: min(own, key=own.get) for cell, own in losses.items()}
    usual = lab.config.optimizer.learning_rate
    rate = lambda cell: {} if best[cell] == usual else {"optimizer.learning_rate": best[cell]}
    conditions = {
        cell: own | rate(cell) for cell, own in CELLS.items()
    }  # The usual rate's are other experiments' too.
    rows = lab.rows(conditions, SEEDS)
    _picture(lab.train({PICTURED[0]: conditions[PICTURED[0]]}, (PICTURED[1],))[PICTURED].workdir)
    tuning = {cell: {str(rate): loss for rate, loss in own.items()} for cell, own in losses.items()}
    return {"rows": rows, "tuning": tuning, "rates": best}


def _picture(workdir):
    """The preconditioners of a layer, with the blocks of Student and TA."""
    made = matta_jax.report(workdir, weight="blocks/0/mlp/w_in", layer=1)
    picture = next(file for file in made.files if file.name == "preconditioners.png")
    shutil.copy(picture, pathlib.Path(__file__).with_name("preconditioners.png"))


def show(results, folder):
    """The cells, the gains and their interaction, the learning rates that were tried."""
    rows = results["rows"]
    lines = [
        Line(cell, "student", None if cell == BASELINE else (BASELINE, "student")) for cell in CELLS
    ]
    lines += [Line(cell, "ta") for cell in CELLS if "MatTA" in cell]
    plot_comparison(rows, lines, folder / "super_additivity.png")
    loss = {cell: of(rows, cell, "student") for cell in CELLS}
    gain = {cell: differences(loss[BASELINE], own) for cell, own in loss.items()}
    both = differences(
        differences(gain["Shampoo, MatTA"], gain["Shampoo, alone"]), gain["AdamW, MatTA"]
    )
    tried = [
        f"| {cell} | "
        + " | ".join(f"{loss:.4f}" for loss in own.values())
        + f" | {results['rates'][cell]} |"
        for cell, own in results["tuning"].items()
    ]
    head = "| cell | " + " | ".join(str(rate) for rate in RATES) + " | chosen |"
    return "\n\n".join(
        [
            comparison(rows, lines),
            "Interaction, gain(both) - gain(Shampoo) - gain(MatTA), Student, nats: "
            f"**{shown(both, signed=True)}**.",
            "Learning rates, by the Student's loss on the validation text (one run each, a seed of "
            "its own):",
            "\n".join([head, "|" + "---|" * (len(RATES) + 2), *tried]),
        ]
    )
