"""The frontier of `ladder`: what the worst size of a run loses, against what the run costs."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from lab.rungs import Rung
from lab.statistics import interval
from ladder.figures import Scores
from ladder.recipes import alone

from matta_jax.reporting import new_figure, save_figure

GOAL = (1.5, 1.0)
"""FLOPs over those of the TA alone, and per cent that the worst size may be behind a lone model."""
Point = tuple[float, float, float]
"""FLOPs over those of the TA alone, per cent of the worst size, and half of its interval."""
LENGTH = 20
"""Tokens for each parameter of the TA."""
_MARKERS = "osD^vPX*"
_LEAST_PER_CENT = 0.5


def plot(scores: Scores, path: pathlib.Path, rungs: Sequence[Rung], recipes: Sequence[str]) -> None:
    """Draws a point for each recipe and rung, and a line from rung to rung.

    Args:
      scores: with all lone models of the rungs at 20 tokens a parameter.
      path: of the picture.
      rungs: in the order of their sizes; at least one.
      recipes: those without figures are left out.
    """
    points = {recipe: recipe_points(scores, recipe, rungs) for recipe in recipes}
    points = {recipe: drawn for recipe, drawn in points.items() if drawn}

    figure = new_figure((7.2, 4.8))
    axes = figure.subplots()
    for i, (recipe, drawn) in enumerate(points.items()):
        _draw(axes, drawn, recipe, i)
    axes.fill_between([0, GOAL[0]], _LEAST_PER_CENT, GOAL[1], color="0.9", zorder=0)
    axes.text(0.03, 0.62, "goal", color="0.35")
    costs = [scores.tflops(rungs[-1], LENGTH, alone(width)) for width in rungs[-1].widths]
    lone = sum(costs) / costs[-1]
    axes.axvline(lone, color="0.4", linestyle="--", linewidth=0.9)
    axes.text(lone - 0.03, 22, "five models,\neach alone", color="0.35", ha="right", fontsize=8)

    axes.set_yscale("log")
    axes.set_ylim(_LEAST_PER_CENT, 45)
    axes.set_xlim(0, lone + 0.2)
    ticks = [0.5, 1, 2, 5, 10, 20, 40]
    axes.set_yticks(ticks, [f"{tick:g} %" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("FLOPs of the run, over those of its TA trained alone")
    axes.set_ylabel("worst of five sizes, behind a model trained alone")
    axes.set_title(f"{verdict(points)}\n{_legend_of(rungs)}", fontsize=10)
    axes.grid(color="0.92")
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    save_figure(figure, path)


def recipe_points(scores: Scores, recipe: str, rungs: Sequence[Rung]) -> list[Point]:
    """A recipe's points, of the rungs that have it."""
    points = []
    for rung in rungs:
        if scores.has(rung, LENGTH, recipe):
            reference = scores.tflops(rung, LENGTH, alone(rung.widths[-1]))
            flops = scores.tflops(rung, LENGTH, recipe) / reference
            points.append((flops, *interval(scores.worst(rung, LENGTH, recipe))))
    return points


def verdict(points: Mapping[str, Sequence[Point]]) -> str:
    """Whether a recipe is at the goal at its largest rung, and the one whose worst size is best."""
    last = {recipe: drawn[-1] for recipe, drawn in points.items()}
    best = min(last, key=lambda recipe: last[recipe][1])
    flops, worst, _ = last[best]
    is_met = any(cost <= GOAL[0] and excess <= GOAL[1] for cost, excess, _ in last.values())
    start = "The goal is met" if is_met else "No recipe is at the goal yet"
    return f"{start}: the best has its worst size at {worst:+.1f} % for {flops:.1f} x the FLOPs"


def _draw(axes: Any, points: Sequence[Point], recipe: str, index: int) -> None:
    color, marker = f"C{index}", _MARKERS[index]
    axes.plot(*zip(*[point[:2] for point in points], strict=True), color=color, linewidth=1)
    for i, (flops, worst, half) in enumerate(points):
        # The last rung is filled: what a line leads to.
        is_last = i == len(points) - 1
        below = max(0.0, min(half, worst - _LEAST_PER_CENT))
        axes.errorbar(
            flops, worst, yerr=[[below], [half]], color=color, marker=marker, markersize=6,
            markerfacecolor=color if is_last else "w", capsize=2, elinewidth=0.8,
            label=recipe if is_last else None,
        )  # fmt: skip


def _legend_of(rungs: Sequence[Rung]) -> str:
    names = [f"filled: {rungs[-1].name} parameters"]
    names += [f"hollow: {rung.name}" for rung in rungs[:-1]]
    return f"({', '.join(names)}; {LENGTH} tokens for each)"
