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
      count: examples that were scored.
      truncated: examples that were longer than the model reads, and lost tokens at their start.
      left_out: examples that cannot be scored, as the tokenizer does not hold them.
      numbers: which example each of `right` is, by its line; None: all of the file, in order.
    """

    scores: list[Score]
    right: np.ndarray | None
    count: int
    truncated: int = 0
    left_out: int = 0
    numbers: Sequence[int] | None = None


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
    pairs = []
    for name, outcome in zip(names[1:], outcomes[1:], strict=True):
        right = _both_right(outcomes[0], outcome)
        if right is not None:
            pairs.append(paired_test(task, (names[0], name), right))
    return pairs


def _both_right(a: Outcome, b: Outcome) -> tuple[np.ndarray, np.ndarray] | None:
    """The right answers of two models on the examples that both were scored on: models of other
    tokenizers may leave out others.
    """
    if a.right is None or b.right is None:
        return None
    if a.numbers is None or b.numbers is None:
        return a.right, b.right
    _, of_a, of_b = np.intersect1d(a.numbers, b.numbers, return_indices=True)
    return a.right[of_a], b.right[of_b]
