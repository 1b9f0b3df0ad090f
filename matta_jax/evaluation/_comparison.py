"""What models reached on the same tasks, side by side."""

import dataclasses
from collections.abc import Sequence

from matta_jax.evaluation._tasks import Paired
from matta_jax.reporting import markdown_table

# From here on a figure is shown by its digits, not by its decimals.
_LARGE_FIGURE = 1e5


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The scores of one model.

    Attributes:
      spec: the sub-model.
      origin: where it was read.
      counts: `parameters`, `bytes`, `flops_per_token`.
      scores: task to figure; a task may add figures beside its own, such as
        `lambada_perplexity:FILE`.
      intervals: of the figures that have one, at 95 %.
      truncated: task to examples that were longer than the model reads, and lost tokens at their
        start.
      examples: task to how many were scored; of texts, tokens.
      left_out: task to examples that were not scored, as the tokenizer does not hold them.
      compute_dtype: type of activations and matmuls.
    """

    spec: str
    origin: dict[str, object]
    counts: dict[str, int]
    scores: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    truncated: dict[str, int]
    examples: dict[str, int]
    left_out: dict[str, int] = dataclasses.field(default_factory=dict)
    compute_dtype: str = "float32"


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Several models on the same tasks.

    Attributes:
      evaluations: of each model.
      paired: each model against the first, for tasks with right and wrong answers.
      baselines: what trivial methods reach, by task and name.
      table: all of it, for people.
    """

    evaluations: list[Evaluation]
    paired: list[Paired]
    baselines: dict[str, dict[str, float]]
    table: str


def table_of(
    names: Sequence[str],
    evaluations: Sequence[Evaluation],
    baselines: dict[str, dict[str, float]],
    paired: Sequence[Paired],
) -> str:
    """All figures for people, as Markdown: a row for each figure and model or baseline.

    Args:
      names: of the models.
      evaluations: of each model, on the same tasks.
      baselines: what trivial methods reach, by task and name.
      paired: tests of models against the first.
    """
    header = ["task", "model or baseline", "figure", "95 % interval", "", "", ""]
    rows = []
    for task in evaluations[0].scores:
        for name, evaluation in zip(names, evaluations, strict=True):
            rows.append(_table_row(task, name, evaluation, paired))
        for name, value in baselines.get(task, {}).items():
            rows.append([task, name, f"{value:.4f}", "", "", "", ""])

    # Of intervals, truncations, examples left out and tests, a comparison may have none.
    columns = [0, 1, 2]
    columns += [i for i in range(3, len(header)) if any(row[i] for row in rows)]
    return markdown_table(
        [header[i] for i in columns],
        [[row[i] for i in columns] for row in rows],
        left=(0, 1, 3, 4, 5, 6),
    )


def _table_row(task: str, name: str, evaluation: Evaluation, paired: Sequence[Paired]) -> list[str]:
    value = evaluation.scores[task]
    figure = f"{value:.4f}" if abs(value) < _LARGE_FIGURE else f"{value:.4g}"

    interval = evaluation.intervals.get(task)
    bounds = f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else ""

    num_truncated = evaluation.truncated.get(task)
    truncation = ""
    if num_truncated:
        truncation = f"{num_truncated} of {evaluation.examples[task]} examples truncated"

    num_left_out = evaluation.left_out.get(task)
    left_out = ""
    if num_left_out:
        total = evaluation.examples[task] + num_left_out
        left_out = f"{num_left_out} of {total} examples left out"

    test = ""
    for pair in paired:
        if (pair.task, pair.b) == (task, name):
            test = f"p={pair.p_value:.3g} against {pair.a}"
            break
    return [task, name, figure, bounds, truncation, left_out, test]
