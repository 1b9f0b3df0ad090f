"""Runs of conditions and seeds: each is trained once, and goes on where it was stopped.

All experiments of one config train under one folder, where a run's name is its overrides: what two
of them need is trained once.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matta_jax
from lab.statistics import Row
from matta_jax import config as c
from matta_jax import stops
from matta_jax.errors import UserError
from matta_jax.sharding import make_mesh
from matta_jax.storage import replace_text
from matta_jax.sweeps import Overrides, SweepRun, is_finished, last_evaluation, plan_sweep
from matta_jax.training import make_setup, run_flops_of

RunKey = tuple[str, int]
"""Condition and seed."""


@dataclasses.dataclass(frozen=True)
class Trained:
    """A finished run, in its folder."""

    workdir: pathlib.Path

    @property
    def figures(self) -> dict[str, float]:
        """Its last held-out figures by model, in nats per token or example."""
        evaluation = last_evaluation(self.workdir)
        if evaluation is None:
            raise UserError(f"{self.workdir / 'metrics.jsonl'} has no evaluation")
        # A run without a nest has no TA.
        models = ("student", "ta")
        return {model: evaluation[model] for model in models if evaluation[model] is not None}


@dataclasses.dataclass(frozen=True)
class Lab:
    """Trains what an experiment asks for.

    Attributes:
      config: of all runs, before their overrides.
      data: the folder of `--data_dir`.
      workdir: the folder of all runs.
      seeds: those to train, None for all; an experiment is measured when all of its seeds are
        there.
      log: takes a line for each run that is trained.
    """

    config: c.Config
    data: pathlib.Path
    workdir: pathlib.Path
    seeds: Sequence[int] | None
    log: Callable[[str], None]

    def train(
        self, conditions: Mapping[str, Overrides], seeds: Sequence[int]
    ) -> dict[RunKey, Trained]:
        """Trains each condition with each seed; returns the runs.

        Raises:
          UserError: some are missing.
          Stopped: a signal stopped one of them.
        """
        runs = self._plan(conditions, seeds)

        for (condition, seed), run in runs.items():
            is_ours = self.seeds is None or seed in self.seeds
            if is_ours and not is_finished(run):
                self.log(f"{condition}, seed {seed}")
                result = matta_jax.train(run.config, run.workdir, log=lambda line: None)
                # No UserError, which experiments pass over: no other run is to begin.
                if not result.finished:
                    raise stops.Stopped

        return {key: _trained(run) for key, run in runs.items()}

    def _plan(
        self, conditions: Mapping[str, Overrides], seeds: Sequence[int]
    ) -> dict[RunKey, SweepRun]:
        # All are checked before the first is trained.
        runs = {}
        for seed in seeds:
            for condition, overrides in conditions.items():
                seeded = dict(overrides) | {"train.seed": seed}
                runs[condition, seed] = plan_sweep(self.config, [seeded], self.workdir)[0]
        return runs

    def flops(self, overrides: Overrides) -> float:
        """Analytic FLOPs of a run per token that it reads."""
        config = c.override(self.config, overrides)
        return run_flops_of(make_setup(config, make_mesh((1, 1, 1))))

    def rows(self, conditions: Mapping[str, Overrides], seeds: Sequence[int]) -> list[Row]:
        """Trains, and returns a row for each run: condition, seed, steps, FLOPs, held-out Student
        and TA.
        """
        runs = self.train(conditions, seeds)
        flops = {name: self.flops(overrides) for name, overrides in conditions.items()}

        rows = []
        for (condition, seed), run in runs.items():
            steps = c.override(self.config, conditions[condition]).train.num_steps
            tokens = steps * self.config.data.batch_size * self.config.data.seq_len
            row: Row = {
                "condition": condition,
                "seed": seed,
                "steps": steps,
                "tflops": flops[condition] * tokens / 1e12,
            }
            rows.append(row | run.figures)
        return rows


def stored(file: pathlib.Path, measure: Callable[[], Any]) -> Any:
    """What a JSON file holds; measured and written first where it is not there."""
    if not file.is_file():
        replace_text(file, json.dumps(measure()))
    return json.loads(file.read_text())


def _trained(run: SweepRun) -> Trained:
    if not is_finished(run):
        raise UserError(f"{run.workdir} is not trained; run this experiment with all its seeds")
    return Trained(run.workdir)
