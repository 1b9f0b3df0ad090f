"""The tables and the picture of `elasticity`: bits per byte and LAMBADA, by size."""

import pathlib
from collections.abc import Sequence
from typing import Any

from elasticity import conditions
from elasticity.conditions import NESTS, SEARCHED, UNIFORM, WIDE_INSIDE, WIDE_OUTSIDE
from lab.statistics import Row, differences, format_interval, interval

from matta_jax.reporting import markdown_table, new_figure, save_figure

_RIVALS = {
    "d_ff=256": ["d_ff=256"],
    WIDE_OUTSIDE: [WIDE_OUTSIDE, WIDE_INSIDE, "d_ff=512"],
}
"""By the model whose size is the search's budget: what the search is compared with."""
_STYLES = {"alone": ("k", "s"), "two points": ("C0", "o"), "with a mix": ("C1", "D")}
"""Colour and marker."""
_MARKS = {
    WIDE_OUTSIDE: ("^", "wide-narrow-wide"),
    WIDE_INSIDE: ("v", "narrow-wide-narrow"),
    f"{SEARCHED}: {WIDE_OUTSIDE}": ("*", "search"),
}
"""Marker and label of the models that are no uniform width."""


class Scores:
    """What was measured, by condition and name of the model.

    Attributes:
      rows: by condition and name, in the order in which they were measured; seed by seed.
    """

    def __init__(self, rows: Sequence[Row]):
        self.rows: dict[tuple[str, str], list[Row]] = {}
        for row in rows:
            self.rows.setdefault((row["condition"], row["name"]), []).append(row)

    def values(self, condition: str, name: str, figure: str = "bits_per_byte") -> list[float]:
        """A figure of a model, seed by seed."""
        return [row[figure] for row in self.rows[condition, name]]

    def mean(self, condition: str, name: str, figure: str) -> float:
        """The mean of a figure over the seeds."""
        return interval(self.values(condition, name, figure))[0]


def tables(scores: Scores) -> str:
    """All tables, in Markdown."""
    parts = [
        "Bits per byte of the test text:",
        _size_table(scores),
        "A fifth of LAMBADA, whole words: accuracy / perplexity, means:",
        _lambada_table(scores),
        "Search (ranked and verified on the validation text) against patterns:",
        _search_table(scores),
        "What search picked:",
        _picks(scores),
    ]
    return "\n\n".join(parts)


def _size_table(scores: Scores) -> str:
    lines = []
    for name, width in UNIFORM.items():
        two_points = scores.values("two points", name)
        with_a_mix = scores.values("with a mix", name)

        alone, difference = "", ""
        condition = f"alone {width}"
        if condition in conditions.TRAINED_ALONE:
            alone_values = scores.values(condition, condition)
            alone = format_interval(alone_values)
            difference = format_interval(differences(with_a_mix, alone_values), signed=True)

        parameters = scores.rows["two points", name][0]["parameters"]
        lines.append(
            [
                name,
                f"{parameters:,}",
                alone,
                format_interval(two_points),
                format_interval(with_a_mix),
                difference,
            ]
        )

    header = ["model", "parameters", "alone", "two points", "with a mix", "with a mix minus alone"]
    return markdown_table(header, lines, left=(0, 2, 3, 4, 5))


def _lambada_table(scores: Scores) -> str:
    lines = []
    for name, width in UNIFORM.items():
        if width not in conditions.WIDTHS:
            continue

        cells = [name]
        alone = (f"alone {width}", f"alone {width}")
        for condition, model in (alone, ("two points", name), ("with a mix", name)):
            accuracy = scores.mean(condition, model, "lambada")
            perplexity = scores.mean(condition, model, "lambada_perplexity")
            cells.append(f"{100 * accuracy:.2f} % / {perplexity:,.0f}")
        lines.append(cells)

    return markdown_table(["model", "alone", "two points", "with a mix"], lines)


def _search_table(scores: Scores) -> str:
    lines = []
    for condition in NESTS:
        for budget, rivals in _RIVALS.items():
            pick_values = scores.values(condition, f"{SEARCHED}: {budget}")
            for rival in rivals:
                rival_values = scores.values(condition, rival)
                lead = format_interval(differences(pick_values, rival_values), signed=True)
                lines.append([condition, budget, rival, format_interval(rival_values), lead])

    header = [
        "run",
        "budget: parameters of",
        "rival",
        "rival's bits per byte",
        "search minus rival",
    ]
    return markdown_table(header, lines)


def _picks(scores: Scores) -> str:
    lines = []
    for (condition, name), rows in scores.rows.items():
        if not name.startswith(SEARCHED):
            continue
        budget = name.partition(": ")[2]
        for row in rows:
            lines.append(f"- {condition}, seed {row['seed']}, within {budget}: `{row['spec']}`")
    return "\n".join(lines)


def plot(scores: Scores, path: pathlib.Path) -> None:
    """Draws bits per byte against parameters; writes the picture to `path`."""
    figure = new_figure((7.5, 5.0))
    axes = figure.subplots()

    alone = [(f"alone {width}", f"alone {width}") for width in conditions.WIDTHS]
    _draw_curve(axes, scores, alone, "alone", label="trained alone at its size", linestyle="")

    for condition in NESTS:
        uniform = [(condition, name) for name in UNIFORM]
        label = f"one run, {condition}: uniform widths"
        _draw_curve(axes, scores, uniform, condition, label=label, linestyle="-")
        _draw_marks(axes, scores, condition)

    axes.set_xlabel("parameters, millions")
    axes.set_ylabel("test text, bits per byte (lower is better)")
    axes.grid(color="0.92")
    axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


def _draw_curve(
    axes: Any,
    scores: Scores,
    models: Sequence[tuple[str, str]],
    style: str,
    *,
    label: str,
    linestyle: str,
) -> None:
    points = []
    for model in models:
        millions = scores.rows[model][0]["parameters"] / 1e6
        points.append((millions, *interval(scores.values(*model))))
    millions, means, halves = zip(*sorted(points), strict=True)

    colour, marker = _STYLES[style]
    axes.errorbar(
        millions,
        means,
        yerr=halves,
        fmt=marker,
        color=colour,
        linestyle=linestyle,
        capsize=3,
        markersize=5,
        label=label,
    )


def _draw_marks(axes: Any, scores: Scores, condition: str) -> None:
    for name, (marker, label) in _MARKS.items():
        # Seeds may find models of different sizes.
        parameters = scores.values(condition, name, "parameters")
        axes.plot(
            [sum(parameters) / len(parameters) / 1e6],
            [scores.mean(condition, name, "bits_per_byte")],
            marker,
            color=_STYLES[condition][0],
            markersize=9,
            alpha=0.7,
            label=f"{condition}: {label}",
        )
