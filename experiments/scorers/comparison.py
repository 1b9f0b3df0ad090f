"""AUC loss of a scorer trained alone and in its TA; what the experiments `quality` and `relevance`
share.
"""

import pathlib
import runpy
from typing import Any

from lab.figures import Line, comparison, plot_comparison
from lab.protocol import Experiment, Results
from lab.runs import Lab, stored
from scorers import prepare

import matta_jax
from matta_jax import config as c
from matta_jax.sweeps import Overrides

CONDITIONS: dict[str, Overrides] = {
    "alone": {"nest.d_ff": None, "nest.widths": ()},
    "TA alone": {"model.d_ff": 256, "nest.widths": ()},
    "MatTA": {"nest.mix_per_step": 0},
    "MatTA and a mix": {},
}
LINES = [
    Line("alone"),
    Line("MatTA", "student", ("alone", "student")),
    Line("MatTA and a mix", "student", ("alone", "student")),
    Line("TA alone", "ta", ("alone", "student")),
    Line("MatTA", "ta", ("TA alone", "ta")),
    Line("MatTA and a mix", "ta", ("TA alone", "ta")),
]
_UNIT = "AUC loss, 1 - AUC, of the test examples"
_TASK = "auc:held_out"


class ScorerExperiment(Experiment):
    """A scorer of `configs/NAME.py`, alone and in its TA.

    Attributes:
      raw: what its examples are made of, within the folder of `--data_dir`.
    """

    def __init__(self, name: str, *, raw: str):
        self.name = name
        self.raw = raw

    def write_data(self, data: pathlib.Path, workdir: pathlib.Path) -> None:
        """The examples that `prepare.py` makes of `raw`, once."""
        folder = workdir / self.name
        if not (folder / "test.jsonl").is_file():
            prepare.make_examples(self.name, data / self.raw, folder)

    def config(self, data: pathlib.Path, workdir: pathlib.Path) -> c.Config:
        """The run of `configs/NAME.py` on these examples."""
        folder = workdir / self.name
        file = pathlib.Path(__file__).parents[2] / "configs" / f"{self.name}.py"
        shipped = c.from_config_dict(runpy.run_path(str(file))["get_config"]())

        overrides = {
            "data.source": f"text:{folder}/train.jsonl",
            "data.eval_source": f"text:{folder}/test.jsonl",
            "data.tokenizer": f"hf:{folder}/bpe.json",
            "train.peak_tflops": 0.1,
        }
        return c.override(shipped, overrides)

    def measure(self, lab: Lab) -> Results:
        """Trains all, and scores Student and TA on the test examples."""
        runs = lab.train(CONDITIONS, self.seeds)
        rows = []
        baselines: dict[str, float] = {}

        for row in lab.rows(CONDITIONS, self.seeds):
            condition = row["condition"]
            scores = _scores(runs[condition, row["seed"]].workdir, condition)
            baselines = scores["baselines"]

            losses = scores["losses"]
            if condition == "alone":
                # The one model of this run is of the Student's size.
                losses = {"student": losses["ta"]}

            about = {key: row[key] for key in ("condition", "seed", "steps", "tflops")}
            rows.append(about | losses)

        baseline_losses = {name: 1 - auc for name, auc in baselines.items()}
        return {"rows": rows, "baselines": baseline_losses}

    def show(self, results: Results, folder: pathlib.Path) -> str:
        """The comparison, and the baselines on the same examples."""
        plot_comparison(results["rows"], LINES, folder / f"{folder.name}.png", _UNIT)
        table = comparison(results["rows"], LINES, _UNIT)
        baselines = ", ".join(f"{name} {loss:.4f}" for name, loss in results["baselines"].items())
        return f"{table}\n\nOn the same examples: {baselines}."


def _scores(workdir: pathlib.Path, condition: str) -> dict[str, Any]:
    """The AUC losses of a run's models and the AUCs of the baselines; scored once, and stored."""

    def measure() -> dict[str, Any]:
        models = ["student", "ta"] if "MatTA" in condition else ["ta"]
        compared = matta_jax.compare(checkpoint=str(workdir), sub_models=models, tasks=[_TASK])

        losses = {}
        for model, evaluation in zip(models, compared.evaluations, strict=True):
            losses[model] = 1 - evaluation.scores[_TASK]
        return {"losses": losses, "baselines": compared.baselines[_TASK]}

    return stored(workdir / "auc.json", measure)
