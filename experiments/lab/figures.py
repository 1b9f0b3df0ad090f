"""The table and the plot of a comparison: conditions by their models, with intervals over seeds."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from lab.statistics import Row, differences, format_interval, interval, seed_values
from matta_jax.reporting import markdown_table, new_figure, save_figure

_NATS = "held-out nats per token"
_MODELS = {"student": "Student", "ta": "TA"}
# By what `model_name` says: a model that was trained alone has no name.
_COLOURS = {"": "C2", "Student": "C0", "TA": "C1"}
_MARK: dict[str, Any] = {"fmt": "D", "capsize": 3, "markersize": 5}


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a comparison.

    Attributes:
      condition: of the runs.
      figure: the model of the condition that is shown, `student` or `ta`.
      reference: condition and figure that it is compared with; None: with nothing.
    """

    condition: str
    figure: str = "student"
    reference: tuple[str, str] | None = None


def measured_lines(rows: Sequence[Row], lines: Sequence[Line]) -> list[Line]:
    """Those whose condition is measured, without references that are not."""
    conditions = {row["condition"] for row in rows}
    there = []
    for line in lines:
        if line.condition not in conditions:
            continue
        has_reference = line.reference is not None and line.reference[0] in conditions
        there.append(line if has_reference else Line(line.condition, line.figure))
    return there


def comparison(rows: Sequence[Row], lines: Sequence[Line], unit: str = _NATS) -> str:
    """The table of conditions: the figure, and the difference to its reference, paired by seed."""
    header = ["condition", "model", unit, "difference, 95 % interval", "to", "steps", "TFLOP"]
    cells = [_cells(rows, line) for line in lines]
    return markdown_table(header, cells, left=(0, 1, 2, 3, 4))


def _cells(rows: Sequence[Row], line: Line) -> list[str]:
    values = seed_values(rows, line.condition, line.figure)
    first_row = _first_row(rows, line.condition)

    difference, versus = "", ""
    if line.reference is not None:
        reference_values = seed_values(rows, *line.reference)
        difference = format_interval(differences(values, reference_values), signed=True)
        versus = " ".join(filter(None, (line.reference[0], model_name(rows, *line.reference))))

    return [
        line.condition,
        model_name(rows, line.condition, line.figure),
        format_interval(values),
        difference,
        versus,
        str(first_row["steps"]),
        f"{first_row['tflops']:.1f}",
    ]


def model_name(rows: Sequence[Row], condition: str, figure: str) -> str:
    """A condition's model, as tables name it: nothing where the condition has but one."""
    name = _MODELS[figure]
    has_both = _MODELS.keys() <= _first_row(rows, condition).keys()
    return name if has_both else ""


def _first_row(rows: Sequence[Row], condition: str) -> Row:
    return next(row for row in rows if row["condition"] == condition)


def plot_comparison(
    rows: Sequence[Row],
    lines: Sequence[Line],
    path: pathlib.Path,
    unit: str = _NATS,
    title: str = "",
) -> None:
    """Draws each line's mean and interval, and the seeds as dots; writes the picture to `path`.

    Args:
      rows: of the runs.
      lines: what is drawn, from the top.
      path: of the PNG file.
      unit: of the figures, of which lower ones are better.
      title: what is compared.
    """
    figure = new_figure((8.0, 1.6 + 0.42 * len(lines)))
    axes = figure.subplots()
    heights = [-i for i in range(len(lines))]
    labels = []

    for height, line in zip(heights, lines, strict=True):
        values = seed_values(rows, line.condition, line.figure)
        mean, half = interval(values)
        model = model_name(rows, line.condition, line.figure)
        axes.errorbar([mean], [height], xerr=[half], color=_COLOURS[model], **_MARK)
        axes.plot(values, [height] * len(values), "o", color="0.6", markersize=3, zorder=3)
        labels.append(f"{line.condition}: {model}" if model else line.condition)

    axes.plot([], [], "o", color="0.6", markersize=3, label="each seed")
    # The colours that are drawn alone, each of which is a kind of model.
    models = [model_name(rows, line.condition, line.figure) for line in lines]
    for model in dict.fromkeys(models):
        label = f"{model or 'a model trained alone'}: mean and 95 % interval"
        axes.errorbar([], [], xerr=[], color=_COLOURS[model], label=label, **_MARK)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)

    axes.set_yticks(heights, labels)
    axes.set_ylim(-len(lines) + 0.4, 0.6)
    axes.grid(axis="x", color="0.92")
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(f"quality: {unit}, lower is better")
    save_figure(figure, path)
