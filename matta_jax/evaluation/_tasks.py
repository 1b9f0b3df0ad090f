"""Tasks: what a model can be scored on. A task is prepared once, and scores any number of models
alike.
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import scipy.stats

from matta_jax.packages import Model

# Of every interval.
CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True)
class Score:
    """A figure of one model.

    Attributes:
      task: `NAME:WHERE`, such as `lambada:lambada_test.jsonl`.
      value: the figure.
      interval: where the true value lies with a confidence of 95 %; None where that is not known.
    """

    task: str
    value: float
    interval: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a task found out about one model.

    Attributes:
      scores: the figures, the primary one first.
      right: of each example, whether the model had it right; None for tasks that have no right and
        wrong.
      count: examples.
      truncated: examples that were longer than the model reads, and lost tokens at their start.
    """

    scores: list[Score]
    right: np.ndarray | None
    count: int
    truncated: int = 0


class Task(Protocol):
    """Something to score models on.

    Attributes:
      fingerprint: of the examples.
      baselines: what trivial methods reach on the primary figure, by name.
    """

    fingerprint: str
    baselines: dict[str, float]

    def run(self, model: Model) -> Outcome:
        """Scores a model."""
        ...


def share(task: str, right: np.ndarray) -> Score:
    """The share of right answers, with Wilson's interval."""
    test = scipy.stats.binomtest(int(right.sum()), len(right))
    low, high = test.proportion_ci(CONFIDENCE, method="wilson")
    return Score(task, float(right.mean()), (float(low), float(high)))


@dataclasses.dataclass(frozen=True)
class Paired:
    """Two models on the same examples.

    Attributes:
      task: the primary figure's.
      a, b: the models.
      only_a, only_b: examples that one alone had right.
      p_value: of McNemar's exact test that both are right equally often.
    """

    task: str
    a: str
    b: str
    only_a: int
    only_b: int
    p_value: float


def paired_test(task: str, names: tuple[str, str], right: tuple[np.ndarray, np.ndarray]) -> Paired:
    """Compares two models' right answers, example by example (McNemar 1947, exact)."""
    right_a, right_b = right
    only_a = int((right_a & ~right_b).sum())
    only_b = int((right_b & ~right_a).sum())

    # Only examples on which the models differ say which is better; of two equal ones, half would.
    num_differing = only_a + only_b
    p_value = 1.0
    if num_differing:
        p_value = float(scipy.stats.binomtest(only_a, num_differing).pvalue)
    return Paired(task, *names, only_a, only_b, p_value)


def all_pairs(names: Sequence[str], outcomes: Sequence[Outcome], task: str) -> list[Paired]:
    """Compares each model with the first one."""
    first_right = outcomes[0].right
    pairs = []
    for name, outcome in zip(names[1:], outcomes[1:], strict=True):
        if first_right is not None and outcome.right is not None:
            pairs.append(paired_test(task, (names[0], name), (first_right, outcome.right)))
    return pairs
