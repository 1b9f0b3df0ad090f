"""The table and the plot of an experiment, from its runs or from the results that are stored beside it.

    python experiments/analyse.py --experiment=baseline --workdir=runs/baseline   # after the sweep: stores results.json
    python experiments/analyse.py --experiment=baseline                           # table and plot again

Held-out nats per token at the end of each run. A condition is compared with the experiment's baseline seed by seed: the
mean difference and its 95 % interval, by Student's t over seeds.
"""

import json
import math
import pathlib
import runpy

import scipy.stats
from absl import flags

from matta_jax.bin import _app
from matta_jax.errors import UserError
from matta_jax.reporting import markdown_table, new_figure, save_figure

_EXPERIMENT = flags.DEFINE_string("experiment", None, "A folder of experiments/ with a config.py.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the sweep; without it, the stored results are read.")

FOLDER = pathlib.Path(__file__).parent
FIGURES = {"student": "eval/student", "ta": "eval/ta"}


def gather(experiment, workdir):
    """Returns each run's condition, seed and last held-out figures. Raises UserError while runs are missing."""
    rows = []
    path = workdir / "sweep.json"
    if not path.is_file():
        raise UserError(f"--workdir={str(workdir)!r} has no sweep.json; run matta-sweep first")
    for row in json.loads(path.read_text()):
        if row["status"] != "finished":
            raise UserError(f"--workdir={str(workdir)!r}: {row['name']} is {row['status']}; run matta-sweep again")
        overrides = dict(row["overrides"])
        seed = overrides.pop("train.seed")
        plain = lambda values: json.loads(json.dumps(values))
        names = [name for name, own in experiment["CONDITIONS"].items() if plain(own) == plain(overrides)]
        last = [json.loads(line) for line in (workdir / row["name"] / "metrics.jsonl").read_text().splitlines()]
        figures = next(step for step in reversed(last) if "eval/student" in step)
        own = {name: figures[key] for name, key in FIGURES.items() if key in figures}
        rows.append({"condition": names[0], "seed": seed, "step": figures["step"]} | own)
    return rows


def interval(values):
    """The mean, and half the 95 % interval by Student's t."""
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return mean, scipy.stats.t.ppf(0.975, len(values) - 1) * deviation / math.sqrt(len(values))


def table_of(rows, experiment):
    """The table, and for the plot each condition's mean and half interval."""
    by = {(row["condition"], row["seed"]): row for row in rows}
    seeds = sorted({row["seed"] for row in rows})
    lines, bars = [], {}
    for figure in FIGURES:
        for condition in experiment["CONDITIONS"]:
            values = [by[condition, seed].get(figure) for seed in seeds]
            if None in values:
                continue
            mean, half = interval(values)
            bars[condition, figure] = (mean, half)
            against = [by[experiment["BASELINE"], seed]["student"] for seed in seeds]
            paired, paired_half = interval([a - b for a, b in zip(values, against, strict=True)])
            difference = (
                ""
                if (condition, figure) == (experiment["BASELINE"], "student")
                else (f"{paired:+.4f} ({paired - paired_half:+.4f} to {paired + paired_half:+.4f})")
            )
            lines.append(
                [condition, figure, f"{mean:.4f} ± {half:.4f}", difference, str(by[condition, seeds[0]]["step"])]
            )
    header = ["condition", "model", "held-out nats", f"minus {experiment['BASELINE']}", "steps"]
    return markdown_table(header, lines, left=(0, 1)), bars


def plot(bars, path):
    """Each condition's mean and interval."""
    figure = new_figure((7.0, 4.5))
    axes = figure.subplots()
    for i, ((condition, model), (mean, half)) in enumerate(bars.items()):
        axes.errorbar([mean], [-i], xerr=[half], fmt="o", color={"student": "C0", "ta": "C1"}[model], capsize=3)
        axes.annotate(
            f"{condition}: {model}", (mean, -i), xytext=(0, 6), textcoords="offset points", fontsize=8, ha="center"
        )
    axes.set_yticks([])
    axes.margins(y=0.15, x=0.2)
    axes.set_xlabel("held-out nats per token (mean and 95 % interval over seeds)")
    return save_figure(figure, path)


def main():
    """Prints the table; stores results, table and plot."""
    folder = FOLDER / _app.required(_EXPERIMENT, "baseline")
    if not (folder / "config.py").is_file():
        raise UserError(f"--experiment={folder.name!r} has no config.py; name a folder of {FOLDER}")
    experiment, stored = runpy.run_path(str(folder / "config.py")), folder / "results.json"
    if _WORKDIR.value is not None:
        stored.write_text(json.dumps(gather(experiment, pathlib.Path(_WORKDIR.value)), indent=1) + "\n")
    if not stored.is_file():
        raise UserError(f"{stored} is missing; run the sweep, and name its folder by --workdir")
    table, bars = table_of(json.loads(stored.read_text()), experiment)
    (folder / "table.md").write_text(table + "\n")
    plot(bars, folder / "conditions.png")
    print(table)


if __name__ == "__main__":
    _app.run(main)
