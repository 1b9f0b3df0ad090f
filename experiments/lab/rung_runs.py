"""Runs of a rung of the ladder, tuned and scored, in a folder that its experiments share."""

import abc
import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import matta_jax
from lab import texts
from lab.books import REPORTED_ON, TUNED_ON
from lab.protocol import Experiment
from lab.rungs import RUNGS, SEQ_LEN, Rung, rung_config
from lab.runs import Lab
from lab.statistics import Row
from matta_jax.config import Config, override
from matta_jax.errors import UserError
from matta_jax.storage import replace_text
from matta_jax.sweeps import Overrides

TUNING_SEED = 100
"""Of the runs that choose a learning rate, and of no other."""
RATES = (0.01, 0.02, 0.04)
"""Tried first; where the best is at an end, the grid goes on beyond it."""
UNIT = "bits per byte"
"""Of all figures: the mean of both texts' held-out halves."""
_SIZES = ("student", "ta")


def mean_bits(scores: Mapping[str, Any]) -> float:
    """The mean over both texts."""
    return sum(scores[kind] for kind in texts.KINDS) / len(texts.KINDS)


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
class SeedRun:
    """A finished run, and its seed."""

    seed: int
    workdir: pathlib.Path


@dataclasses.dataclass(frozen=True)
class RungRuns:
    """The runs of a rung at a length.

    Attributes:
      whole_lab: of an experiment on the ladder, in whose folder the texts are.
      rung: the sizes.
      length: tokens for each parameter of the TA.
    """

    whole_lab: Lab
    rung: Rung
    length: int

    @property
    def lab(self) -> Lab:
        """Trains runs of this rung and length."""
        return dataclasses.replace(
            self.whole_lab,
            config=rung_config(self.rung, self.length, _sources(self.whole_lab.workdir)),
            workdir=self.whole_lab.workdir / f"{self.rung.name}_{self.length}",
        )

    def train(self, name: str, overrides: Overrides, seeds: Sequence[int]) -> list[SeedRun]:
        """Trains what is not trained yet; raises UserError while runs of other processes are
        missing. `name` is for the log.
        """
        trained = self.lab.train({name: overrides}, seeds)
        return [SeedRun(seed, run.workdir) for (_, seed), run in trained.items()]

    def best_rate(self, name: str, overrides: Overrides, specs: Sequence[str]) -> float:
        """The learning rate of the least loss, summed over models and both texts of the side to
        tune on, with a seed of its own.
        """

        def loss_of(rate: float) -> float:
            (run,) = self.train(name, at_rate(overrides, rate), [TUNING_SEED])
            return sum(mean_bits(scores) for scores in self.bits(run, TUNED_ON, specs).values())

        return best_of_grid(loss_of, RATES)

    def tflops(self, overrides: Overrides) -> float:
        """Of a whole run."""
        steps = override(self.lab.config, overrides).train.num_steps
        tokens = steps * self.lab.config.data.batch_size * SEQ_LEN
        return float(f"{self.lab.flops(overrides) * tokens / 1e12:.4g}")

    def bits(self, run: SeedRun, side: str, specs: Sequence[str]) -> dict[str, dict[str, Any]]:
        """`parameters` of models of a run, and their bits per byte of each text, by spec; measured
        once, and kept in the run's folder.
        """
        file = run.workdir / f"bits_{side}.json"
        known = json.loads(file.read_text()) if file.is_file() else {}
        missing = [spec for spec in specs if spec not in known]
        if missing:
            known |= self._measured(run, side, missing)
            replace_text(file, json.dumps(known))
        return {spec: known[spec] for spec in specs}

    def _measured(self, run: SeedRun, side: str, specs: Sequence[str]) -> dict[str, dict[str, Any]]:
        tasks = self.tasks(side)
        compared = matta_jax.compare(
            checkpoint=str(run.workdir), sub_models=list(specs), tasks=list(tasks)
        )
        return {
            spec: _scores(evaluation, tasks)
            for spec, evaluation in zip(specs, compared.evaluations, strict=True)
        }

    def tasks(self, side: str) -> dict[str, str]:
        """The tasks of a side's held-out texts, and of which kind each is."""
        folder = self.whole_lab.workdir
        return {
            f"bits_per_byte:{texts.held_out_file(folder, kind, side)}": kind for kind in texts.KINDS
        }

    def rows(self, conditions: Mapping[str, Overrides], seeds: Sequence[int]) -> list[Row]:
        """Tunes and trains each condition; returns a row for each run: condition, seed, steps,
        FLOPs, and `student` and `ta`, in bits per byte. A condition that this process cannot have
        whole is left out, and logged.
        """
        rows = []
        for condition, overrides in conditions.items():
            try:
                rows += self._rows(condition, overrides, seeds)
            except UserError as error:
                self.whole_lab.log(f"{condition}: {error}")
        if not rows:
            raise UserError("no condition has all of its runs yet; run it with all seeds")
        return rows

    def _rows(self, condition: str, overrides: Overrides, seeds: Sequence[int]) -> list[Row]:
        config = override(self.lab.config, overrides)
        nest = config.nest
        is_nested = any((nest.d_ff, nest.num_layers, nest.d_model, nest.num_heads))
        specs = _SIZES if is_nested else _SIZES[:1]
        rate = self._rate_of(condition, overrides, specs)
        tuned = at_rate(overrides, rate)

        rows: list[Row] = []
        for run in self.train(condition, tuned, seeds):
            row: Row = {
                "condition": condition,
                "seed": run.seed,
                "learning_rate": rate,
                "steps": config.train.num_steps,
                "tflops": self.tflops(tuned),
            }
            scores = self.bits(run, REPORTED_ON, specs)
            rows.append(row | {spec: mean_bits(scores[spec]) for spec in specs})
        return rows

    def _rate_of(self, condition: str, overrides: Overrides, specs: Sequence[str]) -> float:
        if "optimizer.learning_rate" in overrides:
            return overrides["optimizer.learning_rate"]
        return self.best_rate(condition, overrides, specs)


def _scores(evaluation: Any, tasks: Mapping[str, str]) -> dict[str, Any]:
    scores = {kind: evaluation.scores[task] for task, kind in tasks.items()}
    return {"parameters": evaluation.counts["parameters"], **scores}


def at_rate(overrides: Overrides, rate: float) -> Overrides:
    """A condition with a learning rate."""
    return {**overrides, "optimizer.learning_rate": rate}


def _sources(workdir: pathlib.Path) -> dict[str, str]:
    return {
        "source": f"text:{texts.training_file(workdir)}",
        "eval_source": f"text:{texts.tuning_file(workdir)}",
    }


class RungExperiment(Experiment, abc.ABC):
    """An experiment on the ladder; all of them share texts and runs."""

    runs_of = "ladder"
    rung: ClassVar[Rung] = RUNGS[1]
    length: ClassVar[int] = 20

    def write_data(self, data: pathlib.Path, workdir: pathlib.Path) -> None:
        """Writes the text of all runs."""
        texts.write_texts(data, workdir)

    def config(self, data: pathlib.Path, workdir: pathlib.Path) -> Config:
        """The nest of the rung."""
        del data
        return rung_config(self.rung, self.length, _sources(workdir))
