"""AUC loss of a scorer trained alone and in its TA; what the experiments `quality` and `relevance`
share.
"""

import json
import pathlib
import runpy

from laptop import Line, comparison, plot_comparison
from scorers import prepare

import matta_jax
from matta_jax import config as c
from matta_jax.files import replace_text

SEEDS = (0, 1, 2)
CONDITIONS = {
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


def write_data(name, raw, workdir):
    """The examples that `prepare.py` makes of `raw`, once."""
    folder = workdir / name
    if not (folder / "test.jsonl").is_file():
        prepare.make_examples(name, raw, folder)


def config_of(name, workdir):
    """The run of `configs/NAME.py` on these examples."""
    folder = workdir / name
    file = pathlib.Path(__file__).parents[2] / "configs" / f"{name}.py"
    config = c.from_config_dict(runpy.run_path(str(file))["get_config"]())
    own = {
        "data.source": f"text:{folder}/train.jsonl",
        "data.eval_source": f"text:{folder}/test.jsonl",
    }
    return c.override(
        config, own | {"data.tokenizer": f"hf:{folder}/bpe.json", "train.peak_tflops": 0.1}
    )


def measure(lab):
    """Trains all, and scores Student and TA on the test examples."""
    rows, baselines = [], {}
    trained = lab.train(CONDITIONS, SEEDS)
    for row in lab.rows(CONDITIONS, SEEDS):
        workdir = trained[row["condition"], row["seed"]].workdir
        cache = workdir / "auc.json"
        if not cache.is_file():
            ends = ["student", "ta"] if "MatTA" in row["condition"] else ["ta"]
            found = matta_jax.compare(checkpoint=str(workdir), sub_models=ends, tasks=[_TASK])
            losses = {
                end: 1 - one.scores[_TASK] for end, one in zip(ends, found.evaluations, strict=True)
            }
            replace_text(cache, json.dumps({"losses": losses, "baselines": found.baselines[_TASK]}))
        known = json.loads(cache.read_text())
        baselines = known["baselines"]
        losses = (
            known["losses"] if row["condition"] != "alone" else {"student": known["losses"]["ta"]}
        )
        rows.append({key: row[key] for key in ("condition", "seed", "steps", "tflops")} | losses)
    return {"rows": rows, "baselines": {name: 1 - value for name, value in baselines.items()}}


def show(results, folder):
    """The comparison, and the baselines on the same examples."""
    plot_comparison(results["rows"], LINES, folder / f"{folder.name}.png", _UNIT)
    others = ", ".join(f"{name} {loss:.4f}" for name, loss in results["baselines"].items())
    return f"{comparison(results['rows'], LINES, _UNIT)}\n\nOn the same examples: {others}."
