"""The quickstart's family beside models of its sizes that are trained alone."""

import functools
import pathlib
from collections.abc import Sequence

from lab.protocol import Experiment, Results, shipped_config
from lab.runs import Lab, stored
from lab.statistics import Row, differences, format_interval, interval

import matta_jax
from matta_jax.config import Config
from matta_jax.nesting import graded_specs, nest_of
from matta_jax.reporting import markdown_table, new_figure, save_figure
from matta_jax.sweeps import Overrides

ONE_RUN = "one run"
_TASK = "bits_per_byte:held_out"


class Curve(Experiment):
    """One run's models against lone ones, by the quickstart's own config."""

    name = "curve"
    seeds = (0, 1, 2)

    def write_data(self, data: pathlib.Path, workdir: pathlib.Path) -> None:
        """Nothing: it reads the standard library."""
        del data, workdir

    def config(self, data: pathlib.Path, workdir: pathlib.Path) -> Config:
        """The quickstart's."""
        del data, workdir
        return shipped_config("quickstart")

    def measure(self, lab: Lab) -> Results:
        """Trains the nest and each width alone, and scores what is held out."""
        conditions: dict[str, Overrides] = {ONE_RUN: {}}
        for width in lab.config.nest.widths:
            conditions[_alone(width)] = {
                "nest.d_ff": None,
                "nest.widths": (),
                "model.d_ff": width,
                "objective.student_weight": 1.0,
            }

        rows = []
        for (condition, seed), run in lab.train(conditions, self.seeds).items():
            specs = graded_specs(nest_of(lab.config)) if condition == ONE_RUN else ["ta"]
            measure = functools.partial(_scores, run.workdir, specs)
            for row in stored(run.workdir / "curve.json", measure):
                rows.append({"condition": condition, "seed": seed} | row)
        flops = {name: lab.flops(overrides) for name, overrides in conditions.items()}
        return {"rows": rows, "flops_per_token": flops}

    def show(self, results: Results, folder: pathlib.Path) -> str:
        """The table of sizes, and the picture."""
        models = _by_model(results["rows"])
        _plot(models, folder / "curve.png")
        return _table(models, results["flops_per_token"])


def _alone(width: int) -> str:
    return f"alone {width}"


def _scores(workdir: pathlib.Path, specs: Sequence[str]) -> list[Row]:
    """Parameters and bits per byte of a run's models."""
    compared = matta_jax.compare(checkpoint=str(workdir), sub_models=list(specs), tasks=[_TASK])
    rows = []
    for spec, evaluation in zip(specs, compared.evaluations, strict=True):
        parameters = evaluation.counts["parameters"]
        rows.append({"spec": spec, "parameters": parameters, "bits": evaluation.scores[_TASK]})
    return rows


def _by_model(rows: Sequence[Row]) -> dict[tuple[str, int], list[Row]]:
    """The rows of each model, seed by seed: by whether it was trained alone, and by its size."""
    models: dict[tuple[str, int], list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row["parameters"], row["seed"])):
        kind = ONE_RUN if row["condition"] == ONE_RUN else "alone"
        models.setdefault((kind, row["parameters"]), []).append(row)
    return models


def _bits(rows: Sequence[Row]) -> list[float]:
    return [row["bits"] for row in rows]


def _table(models: dict[tuple[str, int], list[Row]], flops: dict[str, float]) -> str:
    lines = []
    for (kind, parameters), rows in models.items():
        if kind != ONE_RUN:
            continue
        lone_rows = models.get(("alone", parameters))
        lone, difference = "", ""
        if lone_rows is not None:
            lone = format_interval(_bits(lone_rows))
            difference = format_interval(differences(_bits(rows), _bits(lone_rows)), signed=True)
        spec = rows[0]["spec"]
        lines.append([spec, f"{parameters:,}", format_interval(_bits(rows)), lone, difference])

    header = ["model", "parameters", "out of one run", "trained alone", "one run minus alone"]
    table = markdown_table(header, lines, left=(0, 2, 3, 4))
    lone_flops = sum(value for name, value in flops.items() if name != ONE_RUN)
    share = flops[ONE_RUN] / lone_flops
    count = len(flops) - 1
    return (
        f"{table}\n\nTraining FLOPs of the one run: {share:.2f} of those of the {count} lone runs."
    )


def _plot(models: dict[tuple[str, int], list[Row]], path: pathlib.Path) -> None:
    figure = new_figure((7.0, 4.4))
    axes = figure.subplots()
    styles = {ONE_RUN: ("C0", "o", "-"), "alone": ("k", "s", "")}
    labels = {
        ONE_RUN: "out of one run: uniform widths and mixes of them",
        "alone": "trained alone, a run for each",
    }
    for kind, (colour, marker, line) in styles.items():
        points = [
            (parameters / 1e3, *interval(_bits(rows)))
            for (other, parameters), rows in models.items()
            if other == kind
        ]
        thousands, means, halves = zip(*points, strict=True)
        axes.errorbar(
            thousands, means, yerr=halves, color=colour, marker=marker, linestyle=line,
            capsize=3, markersize=5, label=labels[kind],
        )  # fmt: skip
    axes.set_xlabel("parameters, thousands")
    axes.set_ylabel("held-out bits per byte (lower is better)")
    axes.set_title("The quickstart: mean and 95 % interval of three seeds", fontsize=10)
    axes.grid(color="0.92")
    axes.legend(frameon=False, fontsize=9)
    save_figure(figure, path)


EXPERIMENT = Curve()
