"""Accuracy against size: the table and the picture of a run's scored models.

A row is what `report` reads of a model: its name, sizes, counts and scores; and `stale`, what it is
of where that is not the run's newest checkpoint.
"""

import collections
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from matta_jax import storage
from matta_jax.reporting import markdown_table, save_figure
from matta_jax.selection.scoring import HELD_OUT

Row = dict[str, Any]

NOT_SCORED = "No extracted model has been scored: matta-extract, then matta-evaluate"
"""What a report says in place of its table."""


@dataclasses.dataclass(frozen=True)
class Figure:
    """What models are compared by.

    Attributes:
      task: whose figure it is.
      heading: of its column.
      axis: what the picture's axis says.
      rises: whether more is better.
      where: on what text: figures of two texts do not compare.
    """

    task: str
    heading: str
    axis: str
    rises: bool
    where: str = HELD_OUT

    def of(self, row: Row) -> float | None:
        """The row's figure of this task on this text."""
        return row["scores"].get(f"{self.task}:{self.where}")

    def places(self, row: Row) -> list[str]:
        """The texts on which the row has a figure of this task."""
        prefix = f"{self.task}:"
        return [task.removeprefix(prefix) for task in row["scores"] if task.startswith(prefix)]

    def at(self, where: str) -> "Figure":
        """The same on another text, which its labels name."""
        if where == HELD_OUT:
            return self
        heading = f"{self.heading} of {where}"
        axis = f"{heading}{self.axis[self.axis.index(' (') :]}"
        return dataclasses.replace(self, heading=heading, axis=axis, where=where)

    def improves(self, value: float, best: float) -> bool:
        """Whether a value is better than the best one before it."""
        return value > best if self.rises else value < best


_BITS = Figure(
    "bits_per_byte", "bits/byte", "held-out bits per byte (lower is better)", rises=False
)
_AUC = Figure("auc", "AUC", "held-out AUC (higher is better)", rises=True)


def figure_of(rows: Sequence[Row]) -> Figure:
    """Bits per byte, or of scorers the AUC: of held-out text where a row has it, else of the text
    that most have.
    """
    figure = _AUC if any(map(_AUC.places, rows)) else _BITS
    places = [where for row in rows for where in figure.places(row)]
    if HELD_OUT in places or not places:
        return figure
    return figure.at(collections.Counter(places).most_common(1)[0][0])


def width_text(widths: Sequence[int]) -> str:
    """Of layers: one number where all have the same width."""
    if len(set(widths)) == 1:
        return str(widths[0])
    return " ".join(str(width) for width in widths)


def sizes_table(rows: Sequence[Row], baselines: dict[str, float]) -> str:
    """Returns a Markdown table of the models, and of what trivial methods reach below them."""
    if not rows:
        return NOT_SCORED
    header, lines = size_lines(rows, baselines)
    return markdown_table(header, lines, left=(0, 3))


def size_lines(
    rows: Sequence[Row], baselines: dict[str, float]
) -> tuple[list[str], list[list[str]]]:
    """The header and the lines of `sizes_table`."""
    figure = figure_of(rows)
    header = ["model", "layers", "d_model", "d_ff", "parameters", "MB", "MFLOP/token"]
    header.append(figure.heading)

    lines = []
    for row in rows:
        value = figure.of(row)
        lines.append(
            [
                marked(row),
                str(row["layers"]),
                str(row["d_model"]),
                width_text(row["widths"]),
                f"{row['parameters']:,}",
                f"{row['mb']:.2f}",
                f"{row['flops_per_token'] / 1e6:.2f}",
                "-" if value is None else f"{value:.4f}",
            ]
        )
    for name, value in baselines_at(figure, baselines).items():
        lines.append([name, "", "", "", "", "", "", f"{value:.4f}"])
    return header, lines


def baselines_at(figure: Figure, baselines: dict[str, float]) -> dict[str, float]:
    """Those of the figure's text: trivial methods are run on the held-out text alone."""
    return baselines if figure.where == HELD_OUT else {}


def marked(row: Row) -> str:
    """The name of a model in the table: one that is not of the run's weights says so."""
    return f"{row['name']} ({row['stale']})" if row.get("stale") else row["name"]


def stale_remarks(rows: Sequence[Row]) -> list[str]:
    """A line that names the models which are not of the checkpoint that the run is at."""
    stale = [f"models/{row['folder']} is of {row['stale']}" for row in rows if row.get("stale")]
    if not stale:
        return []
    return [f"Not of the run's newest checkpoint: {', '.join(stale)}; extract and score it again"]


def text_remarks(rows: Sequence[Row]) -> list[str]:
    """A line that names the models which have their figure on other text than the table's."""
    figure = figure_of(rows)
    mentions = []
    for row in rows:
        places = figure.places(row)
        if places and figure.where not in places:
            mentions.append(f"models/{row['folder']} has it of {', '.join(places)}")
    if not mentions:
        return []
    return [
        f"{figure.task} of the table is of {figure.where}, and does not compare with that of other "
        f"text: {'; '.join(mentions)}; score them by --tasks={figure.task}:{figure.where}"
    ]


def plotted(rows: Sequence[Row]) -> list[Row]:
    """The models in the picture: those of the run's weights that have its figure."""
    current_rows = [row for row in rows if not row.get("stale")]
    figure = figure_of(current_rows)
    return [row for row in current_rows if figure.of(row) is not None]


@dataclasses.dataclass(frozen=True)
class Point:
    """A model in the picture.

    Attributes:
      millions: parameters.
      value: its figure.
      name: of it.
    """

    millions: float
    value: float
    name: str


# Colour and label of the two models that every run has.
_ENDS = {"student": ("C0", "Student"), "ta": ("C1", "TA")}
_OTHER_COLOUR = "0.45"

# Share of the range of values that stays free above and below, and the least range.
_MARGIN = 0.15
_LEAST_RANGE = 0.01


def plot_sizes(
    path: storage.Path, picture: Any, rows: Sequence[Row], baselines: dict[str, float]
) -> storage.Path:
    """Draws the figure of each model over its parameters; returns the path.

    Args:
      path: of the PNG file.
      picture: a figure of Matplotlib's, without axes.
      rows: by size, at least one of which has the figure.
      baselines: what trivial methods reach, for the title.
    """
    figure = figure_of(rows)
    points = points_of(rows, figure)
    front = front_of(points, figure)

    axes = picture.subplots()
    if len(front) > 1:
        sizes = [point.millions for point in front]
        values = [point.value for point in front]
        axes.plot(sizes, values, color="0.8", zorder=1, label="best at its size")
        axes.legend(frameon=False)

    middle = (points[0].millions + points[-1].millions) / 2
    front_places = {(point.millions, point.value) for point in front}
    for point in points:
        is_on_front = (point.millions, point.value) in front_places
        _draw_point(axes, point, is_on_front=is_on_front, is_right=point.millions > middle)

    low = min(point.value for point in points)
    high = max(point.value for point in points)
    margin = _MARGIN * max(high - low, _LEAST_RANGE)
    axes.set_ylim(low - margin, high + margin)
    axes.margins(x=_MARGIN)
    axes.set_xlabel("parameters, millions")
    axes.set_ylabel(figure.axis)
    axes.set_title(_title(baselines_at(figure, baselines), figure), fontsize=10)
    return save_figure(picture, path)


def points_of(rows: Sequence[Row], figure: Figure) -> list[Point]:
    """The models that have the figure."""
    points = []
    for row in rows:
        value = figure.of(row)
        if value is not None:
            points.append(Point(row["parameters"] / 1e6, value, row["name"]))
    return points


def front_of(points: Sequence[Point], figure: Figure) -> list[Point]:
    """The points, by size, that are better than all smaller ones."""
    best = -math.inf if figure.rises else math.inf
    front = []
    for point in points:
        if figure.improves(point.value, best):
            best = point.value
            front.append(point)
    return front


def _draw_point(axes: Any, point: Point, *, is_on_front: bool, is_right: bool) -> None:
    colour, label = _ENDS.get(point.name, (_OTHER_COLOUR, point.name))
    axes.scatter([point.millions], [point.value], color=colour, zorder=3)

    # Labels stand below the falling front, or to the inside of the picture.
    is_left = is_on_front or is_right
    axes.annotate(
        label,
        (point.millions, point.value),
        xytext=(-5 if is_left else 5, -12 if is_on_front else 6),
        textcoords="offset points",
        fontsize=8,
        ha="right" if is_left else "left",
    )


def _title(baselines: dict[str, float], figure: Figure) -> str:
    title = "One training run, many models"
    if not baselines:
        return title

    decimals = 3 if figure.rises else 2
    values = [f"{name} {value:.{decimals}f}" for name, value in baselines.items()]
    return f"{title}\non the same text: {', '.join(values)}"
