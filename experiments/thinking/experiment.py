"""ThinkingViT: a nest of vision transformers whose larger one starts from what the smaller one made
of an image, against the plain nest, lone models, and thinking twice with the smaller one.
"""

import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from lab.protocol import Experiment, Results, shipped_config
from lab.rung_runs import best_of_grid
from lab.runs import Lab, stored
from lab.statistics import Row, differences, format_interval, seed_values

import matta_jax
from matta_jax import packages
from matta_jax.config import Config, override
from matta_jax.errors import UserError
from matta_jax.reporting import markdown_table, new_figure, save_figure
from matta_jax.sweeps import Overrides

Images = tuple[np.ndarray, np.ndarray]
"""Pixels [n, H, W, C], or [n, H, W] of greys, and classes [n]."""
SIDES = ("train", "validation", "test")
"""To train on, to choose by, to report on."""
SMALL, LARGE = "alone, 3 heads", "alone, 6 heads"
TWICE = "3 heads, twice"
NEST, RECYCLED = "plain nest", "recycled"
NESTS = (NEST, RECYCLED)
TUNING_SEED = 100
RATES = (0.0025, 0.005, 0.01)
"""Tried first; where the best is at an end, the grid goes on beyond it."""
TUNED_AS = {RECYCLED: NEST, TWICE: SMALL}
"""These start as those, for whose pass nothing is recycled yet, and take their rates."""
VALIDATION = 2000
"""CIFAR-10's images of ten thousand that choose rates and thresholds."""
_NO_NEST: Overrides = {"nest.d_model": None, "nest.num_heads": None, "nest.d_ff": None}
_ALONE: Overrides = {**_NO_NEST, "objective.ta_weight": 0.0, "objective.distill_weight": 0.0}
_THINKS: Overrides = {"model.thinking_heads": (3,), "nest.thoughts": 1}


def conditions() -> dict[str, Overrides]:
    """What is trained."""
    apart = {"objective.distill_weight": 0.0}
    return {
        SMALL: _ALONE,
        LARGE: {**_ALONE, "model.d_model": 96, "model.num_heads": 6, "model.d_ff": 384},
        NEST: apart,
        RECYCLED: {**apart, **_THINKS},
        TWICE: {**_NO_NEST, **apart, **_THINKS},
    }


class Thinking(Experiment):
    """Every condition with each seed, on CIFAR-10.

    Attributes:
      images: what the files of its images begin with.
      steps: of each run.
      picture: the file of its plot.
      rates_chosen: how learning rates were, in words.
    """

    name = "thinking"
    seeds = (0, 1, 2)
    images: ClassVar[str] = "cifar"
    steps: ClassVar[int] = 1000
    picture: ClassVar[str] = "thinking.png"
    rates_chosen: ClassVar[str] = "by the validation images and a seed of their own"

    def write_data(self, data: pathlib.Path, workdir: pathlib.Path) -> None:
        """Writes three .npz: to train on, to choose by, and to report on."""
        files = {side: self.file(workdir, side) for side in SIDES}
        if all(file.is_file() for file in files.values()):
            return
        files["train"].parent.mkdir(parents=True, exist_ok=True)
        for side, (pixels, classes) in self.sides(data).items():
            np.savez(files[side], x=pixels, y=classes)

    def sides(self, data: pathlib.Path) -> dict[str, Images]:
        """The images of each of `SIDES`."""
        images = {side: _npz(data / "images" / f"cifar10_{side}.npz") for side in _CIFAR}
        pixels, classes = images["train_1000pc"]
        order = np.random.default_rng(0).permutation(len(classes))
        sides = {"validation": order[:VALIDATION], "train": order[VALIDATION:]}
        chosen = {side: (pixels[rows], classes[rows]) for side, rows in sides.items()}
        return chosen | {"test": images["test_200pc"]}

    def fields(self) -> Overrides:
        """How its images are read."""
        return {"model.patch_size": 8}

    def file(self, workdir: pathlib.Path, side: str) -> pathlib.Path:
        """Of a side's images."""
        return workdir / "images" / f"{self.images}_{side}.npz"

    def config(self, data: pathlib.Path, workdir: pathlib.Path) -> Config:
        """That of configs/vit.py with seventeen positions, on its images."""
        overrides = {
            **self.fields(),
            # As its runs were trained.
            "model.layer_norm_epsilon": 1e-12,
            "data.source": f"images:{self.file(workdir, 'train')}",
            "data.eval_source": f"images:{self.file(workdir, 'validation')}",
            "train.num_steps": self.steps,
            "train.eval_every": self.steps,
            "train.eval_batches": 32,
            "train.checkpoint_every": self.steps // 4,
            "train.keep_checkpoints": 1,
            "optimizer.warmup_steps": self.steps // 10,
        }
        return override(shipped_config("vit"), overrides)

    def measure(self, lab: Lab) -> Results:
        """Trains all seeds with each condition's rate, and scores the test images."""
        rows = []
        for condition, rate in self.rates(lab).items():
            fields = {**conditions()[condition], "optimizer.learning_rate": rate}
            for (_, seed), run in lab.train({condition: fields}, self.seeds).items():
                about = {"condition": condition, "seed": seed, "learning_rate": rate}
                rows.append(about | self._scores(run.workdir, lab.workdir, condition))
        return {"rows": rows}

    def rates(self, lab: Lab) -> dict[str, float]:
        """The learning rate of each condition: the best on the validation images, of a seed of its
        own.
        """
        rates: dict[str, float] = {}
        for condition, overrides in conditions().items():

            def tuning_loss(rate: float, name: str = condition, base: Any = overrides) -> float:
                fields = {**base, "optimizer.learning_rate": rate}
                (run,) = lab.train({name: fields}, [TUNING_SEED]).values()
                return sum(run.figures.values())

            tuned = TUNED_AS.get(condition)
            rates[condition] = rates[tuned] if tuned else best_of_grid(tuning_loss, RATES)
        return rates

    def show(self, results: Results, folder: pathlib.Path) -> str:
        """Accuracies of all models, and what cascades save."""
        rows = results["rows"]
        _plot(rows, folder / self.picture)
        rates = {row["condition"]: row["learning_rate"] for row in rows}
        chosen = "; ".join(f"{name} {rate:g}" for name, rate in rates.items())
        return (
            f"{_table(rows)}\n\n{_cascades(rows)}\n\nLearning rates, {self.rates_chosen}: {chosen}."
        )

    def _scores(
        self, run: pathlib.Path, workdir: pathlib.Path, condition: str
    ) -> Mapping[str, Any]:
        """The test accuracy of a run's models, and of a nest what its cascade gives; measured
        once.
        """
        return stored(run / "scores.json", lambda: self._measured(run, workdir, condition))

    def _measured(self, run: pathlib.Path, workdir: pathlib.Path, condition: str) -> dict[str, Any]:
        test = str(self.file(workdir, "test"))
        is_alone = condition in (SMALL, LARGE)
        specs = ["student"] if is_alone else ["student", "ta"]
        task = f"accuracy:{test}"
        compared = matta_jax.compare(checkpoint=str(run), sub_models=specs, tasks=[task])
        scores = [evaluation.scores[task] for evaluation in compared.evaluations]
        result: dict[str, Any] = dict(zip(specs, scores, strict=True))
        if condition in NESTS:
            report = matta_jax.cascade_report(
                *packages.load_in_place(str(run), specs),
                tune=str(self.file(workdir, "validation")),
                test=test,
                output=run / "cascade",
            )
            points = [vars(point) for point in report.points]
            result["cascade"] = {"points": points, "pick": vars(report.pick)}
        return result


_CIFAR = ("train_1000pc", "test_200pc")


def _npz(path: pathlib.Path) -> Images:
    if not path.is_file():
        raise UserError(f"{str(path)!r} is missing; name the folder that has images/ as --data_dir")
    with np.load(path) as arrays:
        return arrays["x"], arrays["y"]


def _table(rows: list[Row]) -> str:
    lone = {"student": seed_values(rows, SMALL, "student")}
    lone["ta"] = seed_values(rows, LARGE, "student")
    header = ["condition", "first model", "above alone", "second model", "above alone"]
    lines = [
        [SMALL, format_interval(lone["student"]), "", "", ""],
        [LARGE, "", "", format_interval(lone["ta"]), ""],
    ]
    for condition in (TWICE, *NESTS):
        cells = [condition]
        for spec, values in lone.items():
            reached = seed_values(rows, condition, spec)
            above = differences(reached, values)
            cells += [format_interval(reached), format_interval(above, signed=True)]
        lines.append(cells)
    return markdown_table(header, lines)


def _cascades(rows: list[Row]) -> str:
    header = ["cascade of", "accuracy", "against its second model", "stop early", "time, of all"]
    lines = []
    for condition in NESTS:
        cascades = seed_values(rows, condition, "cascade")
        picks = [cascade["pick"] for cascade in cascades]
        # The last threshold sends all images on.
        alls = [cascade["points"][-1] for cascade in cascades]
        reached = [pick["accuracy"] for pick in picks]
        lost = differences(reached, seed_values(rows, condition, "ta"))
        stopped = [pick["stopped"] for pick in picks]
        times = [pick["ms"] / full["ms"] for pick, full in zip(picks, alls, strict=True)]
        lines.append(
            [
                condition,
                format_interval(reached),
                format_interval(lost, signed=True),
                format_interval(stopped),
                format_interval(times),
            ]
        )
    return markdown_table(header, lines)


def _plot(rows: list[Row], path: pathlib.Path) -> None:
    figure = new_figure((6.0, 3.6))
    if figure is None:
        return
    axes = figure.subplots()
    for condition in NESTS:
        cascades = seed_values(rows, condition, "cascade")
        macs, accuracy = (
            np.mean([[point[name] for point in each["points"]] for each in cascades], axis=0)
            for name in ("macs", "accuracy")
        )
        axes.plot(macs / 1e6, accuracy, "o-", markersize=3, label=f"cascade of {condition}")
    for condition in (SMALL, LARGE):
        level = np.mean(seed_values(rows, condition, "student"))
        axes.axhline(level, linestyle=":", linewidth=1, color="gray")
        axes.annotate(condition, (0.02, level), xycoords=("axes fraction", "data"), fontsize=7)
    axes.set_xlabel("millions of multiplications of an image")
    axes.set_ylabel("accuracy on the test images")
    axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


EXPERIMENT = Thinking()
