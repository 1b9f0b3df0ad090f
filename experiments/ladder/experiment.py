"""The ladder: is each size of one run as good as a model trained alone, as models grow?"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from lab.books import REPORTED_ON, TUNED_ON
from lab.protocol import Experiment, Results
from lab.runs import Lab, stored
from ladder import figures, texts
from ladder.rungs import (
    RATES,
    RUNGS,
    SEEDS,
    SEQ_LEN,
    TUNING_SEED,
    TWO_POINTS,
    Rung,
    conditions_of,
    rung_config,
    settings,
)

import matta_jax
from matta_jax.config import Config
from matta_jax.errors import UserError
from matta_jax.sweeps import Overrides


class Ladder(Experiment):
    """Recipes by sizes and lengths; each with a learning rate of its own."""

    name = "ladder"
    seeds = SEEDS

    def write_data(self, data: pathlib.Path, workdir: pathlib.Path) -> None:
        """Writes the text of all runs."""
        texts.write_texts(data, workdir)

    def config(self, data: pathlib.Path, workdir: pathlib.Path) -> Config:
        """The nest of the first rung."""
        del data
        rung, length = settings()[0]
        return rung_config(rung, length, _sources(workdir))

    def measure(self, lab: Lab) -> Results:
        """Tunes, trains and scores rung by rung. Where a process trains some seeds alone, a recipe
        without all of its runs is left out: the first rungs can be read while the last ones train.
        """
        rows = []
        for rung, length in settings():
            for condition, overrides in conditions_of(rung).items():
                recipe = _Recipe(lab, rung, condition, overrides)
                try:
                    rows += recipe.measure(length, self.seeds)
                except UserError as error:
                    lab.log(f"{rung.name}, {length} tokens a parameter, {condition}: {error}")
        if not rows:
            raise UserError("no recipe has all of its runs yet; run this experiment with all seeds")
        return {"rows": rows}

    def show(self, results: Results, folder: pathlib.Path) -> str:
        """A table for each rung and length, and the picture of what nesting costs."""
        scores = figures.Scores(results["rows"])
        figures.plot(scores, folder / "ladder.png")
        return figures.tables(scores)


def best_of_grid(loss_of: Callable[[float], float], grid: Sequence[float]) -> float:
    """The rate of the least loss; the grid is doubled or halved beyond its ends while the best is
    one of them, at most three times.

    Args:
      loss_of: measures a rate.
      grid: rates in rising order.
    """
    losses = {rate: loss_of(rate) for rate in grid}
    for _ in range(3):
        best = min(losses, key=losses.__getitem__)
        beyond = {max(losses): best * 2, min(losses): best / 2}.get(best)
        if beyond is None:
            break
        losses[beyond] = loss_of(beyond)
    return min(losses, key=losses.__getitem__)


@dataclasses.dataclass(frozen=True)
class _Run:
    """A finished run, and its seed."""

    seed: int
    workdir: pathlib.Path


def _sources(workdir: pathlib.Path) -> dict[str, str]:
    return {
        "source": f"text:{texts.training_file(workdir)}",
        "eval_source": f"text:{texts.tuning_file(workdir)}",
    }


@dataclasses.dataclass(frozen=True)
class _Recipe:
    """A recipe at a rung: its runs of all lengths and seeds.

    Attributes:
      lab: of the whole experiment, in whose folder the texts are.
      rung: the sizes.
      condition: the recipe's name.
      overrides: what it sets.
    """

    lab: Lab
    rung: Rung
    condition: str
    overrides: Overrides

    def measure(self, length: int, seeds: Sequence[int]) -> list[dict[str, Any]]:
        """Trains with the best rate; returns a row for each seed and size."""
        lab, rate = self._lab(length), self._best_rate(length)
        tuned = dict(self.overrides) | {"optimizer.learning_rate": rate}
        tokens = lab.config.train.num_steps * lab.config.data.batch_size * SEQ_LEN
        tflops = lab.flops(tuned) * tokens / 1e12

        rows = []
        for run in self._train(lab, tuned, seeds):
            for score in self._scores(run, REPORTED_ON):
                row = {"rung": self.rung.name, "length": length, "condition": self.condition}
                row |= {"seed": run.seed, "learning_rate": rate, "tflops": float(f"{tflops:.4g}")}
                rows.append(row | score)
        return rows

    def _best_rate(self, length: int) -> float:
        """The learning rate of the least loss over both texts and all sizes, or those alone that it
        trains, on a seed of its own.
        """
        if self.rung.tuned_at is not None:
            smaller = RUNGS[self.rung.tuned_at]
            position = list(conditions_of(self.rung)).index(self.condition)
            condition, overrides = list(conditions_of(smaller).items())[position]
            return _Recipe(self.lab, smaller, condition, overrides)._best_rate(length)
        return best_of_grid(functools.partial(self._tuning_loss, length), RATES)

    def _tuning_loss(self, length: int, rate: float) -> float:
        lab = self._lab(length)
        tuned = dict(self.overrides) | {"optimizer.learning_rate": rate}
        (run,) = self._train(lab, tuned, [TUNING_SEED])
        scores = self._scores(run, TUNED_ON)
        if self.condition == TWO_POINTS:
            # What lies between is not trained: far worse, it would decide alone.
            scores = [scores[0], scores[-1]]
        return sum(score[kind] for score in scores for kind in texts.KINDS)

    def _lab(self, length: int) -> Lab:
        return dataclasses.replace(
            self.lab,
            config=rung_config(self.rung, length, _sources(self.lab.workdir)),
            workdir=self.lab.workdir / f"{self.rung.name}_{length}",
        )

    def _train(self, lab: Lab, overrides: Overrides, seeds: Sequence[int]) -> list[_Run]:
        trained = lab.train({self.condition: overrides}, seeds)
        return [_Run(seed, run.workdir) for (_, seed), run in trained.items()]

    def _scores(self, run: _Run, side: str) -> list[dict[str, Any]]:
        """Bits per byte of each size of a run, by text; measured once, and kept in its folder."""
        measure = functools.partial(self._measured, run, side)
        return stored(run.workdir / f"scores_{side}.json", measure)

    def _measured(self, run: _Run, side: str) -> list[dict[str, Any]]:
        widths = {width: f"d_ff={width}" for width in self.rung.widths}
        if "model.d_ff" in self.overrides:
            widths = {self.overrides["model.d_ff"]: "ta"}

        tasks = {}
        for kind in texts.KINDS:
            tasks[f"bits_per_byte:{texts.held_out_file(self.lab.workdir, kind, side)}"] = kind
        compared = matta_jax.compare(
            checkpoint=str(run.workdir), sub_models=list(widths.values()), tasks=list(tasks)
        )
        rows = []
        for width, evaluation in zip(widths, compared.evaluations, strict=True):
            row = {"d_ff": width, "parameters": evaluation.counts["parameters"]}
            rows.append(row | {kind: evaluation.scores[task] for task, kind in tasks.items()})
        return rows


EXPERIMENT = Ladder()
