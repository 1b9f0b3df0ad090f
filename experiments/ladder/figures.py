"""The tables and the picture of `ladder`: what it costs a size to be part of a nest."""

import pathlib
from collections.abc import Callable, Sequence

from lab.rungs import RUNGS, Rung
from lab.statistics import Row, format_interval, interval
from lab.texts import KINDS
from ladder.recipes import LENGTHS, alone, conditions_of

from matta_jax.reporting import markdown_table, new_figure, save_figure

_SHOWN = ("two points", "with a mix", "with a mix, TA first", "MatFormer, all sizes", "sandwich")
"""Recipes of the picture."""


class Scores:
    """What was measured.

    Attributes:
      rows: by rung, length and condition.
    """

    def __init__(self, rows: Sequence[Row]):
        self.rows: dict[tuple[str, int, str], list[Row]] = {}
        for row in rows:
            key = (row["rung"], row["length"], row["condition"])
            self.rows.setdefault(key, []).append(row)

    def has(self, rung: Rung, length: int, condition: str) -> bool:
        """Whether a recipe was measured."""
        return (rung.name, length, condition) in self.rows

    def bits(self, rung: Rung, length: int, condition: str, width: int) -> list[float]:
        """Bits per byte of a size, the mean of both texts, seed by seed."""
        rows = [row for row in self.rows[rung.name, length, condition] if row["d_ff"] == width]
        rows.sort(key=lambda row: row["seed"])
        return [sum(row[kind] for kind in KINDS) / len(KINDS) for row in rows]

    def excess(self, rung: Rung, length: int, condition: str, width: int) -> list[float]:
        """By how many per cent a size is worse than a model of it trained alone, seed by seed."""
        return self.against(rung, length, condition, alone(width), width)

    def against(
        self, rung: Rung, length: int, condition: str, reference: str, width: int
    ) -> list[float]:
        """By how many per cent a size is worse than that of another recipe, seed by seed."""
        values = self.bits(rung, length, condition, width)
        references = self.bits(rung, length, reference, width)
        # A recipe may train fewer sizes than the rung has.
        pairs = zip(values, references if values else (), strict=True)
        return [100 * (value / reference - 1) for value, reference in pairs]

    def worst(self, rung: Rung, length: int, condition: str) -> list[float]:
        """`excess` of the size that is worst by its mean, of those that the recipe trains."""
        widths = [width for width in rung.widths if self.bits(rung, length, condition, width)]
        excesses = [self.excess(rung, length, condition, width) for width in widths]
        return max(excesses, key=lambda excess: interval(excess)[0])

    def tflops(self, rung: Rung, length: int, condition: str) -> float:
        """Of a run."""
        return self.rows[rung.name, length, condition][0]["tflops"]


def tables(scores: Scores) -> str:
    """A table for each rung and length that was measured, in Markdown."""
    parts = []
    for rung, length in _measured(scores):
        parts.append(heading(rung, length))
        parts.append(table(scores, rung, length, recipes_of(rung)))
    parts.append("The largest size against one trained alone, %, as models grow:")
    parts.append(_trend(scores, _largest_excess))
    parts.append("The worst size, %, as models grow:")
    parts.append(_trend(scores, _worst_excess))
    return "\n\n".join(parts)


def _measured(scores: Scores) -> list[tuple[Rung, int]]:
    """The rungs and lengths at which a TA was trained alone."""
    settings = [(rung, length) for rung in RUNGS for length in LENGTHS[rung.name]]
    return [(rung, length) for rung, length in settings if _references(scores, rung, length)[-1:]]


def whole_rungs(scores: Scores, length: int) -> list[Rung]:
    """The rungs of which a model of each width was trained alone, at a length."""
    return [
        rung
        for rung, measured_length in _measured(scores)
        if measured_length == length and len(_references(scores, rung, length)) == len(rung.widths)
    ]


def _references(scores: Scores, rung: Rung, length: int) -> list[int]:
    """The widths that were trained alone; none where the largest was not."""
    widths = [width for width in rung.widths if scores.has(rung, length, alone(width))]
    return widths if rung.widths[-1] in widths else []


def _largest_excess(scores: Scores, rung: Rung, length: int, condition: str) -> list[float]:
    return scores.excess(rung, length, condition, rung.widths[-1])


def _worst_excess(scores: Scores, rung: Rung, length: int, condition: str) -> list[float]:
    is_whole = len(_references(scores, rung, length)) == len(rung.widths)
    return scores.worst(rung, length, condition) if is_whole else []


def _trend(scores: Scores, excess_of: Callable[[Scores, Rung, int, str], list[float]]) -> str:
    """What a recipe loses to models trained alone, for each rung and length."""
    settings = _measured(scores)
    header = ["recipe", *(f"{rung.name}, {length} tokens" for rung, length in settings)]
    lines = []
    for condition in recipes_of(RUNGS[0]):
        cells = []
        for rung, length in settings:
            is_there = scores.has(rung, length, condition)
            cells.append(_signed(excess_of(scores, rung, length, condition) if is_there else []))
        if any(cells):
            lines.append([condition, *cells])
    return markdown_table(header, lines, left=(0,))


def recipes_of(rung: Rung) -> list[str]:
    """All conditions but the models trained alone."""
    lone = {alone(width) for width in rung.widths}
    return [condition for condition in conditions_of(rung) if condition not in lone]


def heading(rung: Rung, length: int) -> str:
    """What stands over a table."""
    return (
        f"{rung.parameters:,} parameters in the TA's layers ({rung.num_layers} of d_model "
        f"{rung.d_model}), {length} tokens for each:"
    )


def table(scores: Scores, rung: Rung, length: int, recipes: Sequence[str]) -> str:
    """Models trained alone, and what each size of a recipe loses to them, in Markdown."""
    ta_alone = scores.tflops(rung, length, alone(rung.widths[-1]))
    references = _references(scores, rung, length)
    lone_bits = []
    for width in rung.widths:
        is_there = width in references
        bits = scores.bits(rung, length, alone(width), width) if is_there else []
        lone_bits.append(format_interval(bits) if is_there else "not trained")
    is_whole = len(references) == len(rung.widths)
    every = sum(scores.tflops(rung, length, alone(width)) for width in references)
    every_text = f"{every / ta_alone:.2f}" if is_whole else ""
    lines = [["each alone: bits per byte", *lone_bits, "", every_text]]

    for condition in recipes:
        if not scores.has(rung, length, condition):
            continue
        excesses = {width: scores.excess(rung, length, condition, width) for width in references}
        cells = [_signed(excesses[width]) if width in excesses else "" for width in rung.widths]
        flops = scores.tflops(rung, length, condition) / ta_alone
        worst_text = ""
        if is_whole:
            worst_text = f"{interval(scores.worst(rung, length, condition))[0]:+.1f}"
        lines.append([f"{condition}: %", *cells, worst_text, f"{flops:.2f}"])

    header = ["recipe", *(f"d_ff {width}" for width in rung.widths), "worst, %", "FLOPs / TA's"]
    return markdown_table(header, lines, left=(0,))


def paired_table(
    scores: Scores, rung: Rung, length: int, reference: str, recipes: Sequence[str]
) -> str:
    """What each size of a recipe loses to that of a reference, seed by seed, in Markdown."""
    lines = []
    for condition in recipes:
        cells = [
            _signed(scores.against(rung, length, condition, reference, width))
            for width in rung.widths
        ]
        lines.append([condition, *cells])
    header = ["recipe", *(f"d_ff {width}" for width in rung.widths)]
    return markdown_table(header, lines, left=(0,))


def _signed(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean, half = interval(values)
    return f"{mean:+.1f} ± {half:.1f}"


def plot(scores: Scores, path: pathlib.Path) -> None:
    """Draws, for each rung and length, what each size loses to a model trained alone, in per
    cent; writes the picture to `path`.
    """
    panels = [
        (rung, length)
        for rung, length in _measured(scores)
        if any(scores.has(rung, length, condition) for condition in recipes_of(rung))
    ]

    figure = new_figure((1.5 + 3.2 * len(panels), 4.2))
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (rung, length) in zip(grid, panels, strict=True):
        for i, condition in enumerate(_SHOWN):
            if not scores.has(rung, length, condition):
                continue
            widths = _references(scores, rung, length)
            points = [interval(scores.excess(rung, length, condition, width)) for width in widths]
            means, halves = zip(*points, strict=True)
            axes.errorbar(
                widths, means, yerr=halves, color=f"C{i}", marker="o", capsize=3,
                markersize=4, label=condition if axes is grid[0] else None,
            )  # fmt: skip
        axes.axhline(0, color="k", linewidth=0.8)
        axes.axhline(1, color="0.6", linewidth=0.8, linestyle="--")
        axes.set_xscale("log", base=2)
        axes.set_xticks(rung.widths, [str(width) for width in rung.widths])
        axes.set_title(f"{rung.name} parameters, {length} tokens each", fontsize=10)
        axes.set_xlabel("d_ff of the size")
        axes.grid(axis="y", color="0.92")
    grid[0].set_ylabel("bits per byte above a model trained alone, %")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    save_figure(figure, path)
