"""The curves of a run: a panel for each kind of figure, each with its own unit and scale."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

from matta_jax.config import Config
from matta_jax.reporting import save_figure

Metrics = Sequence[dict[str, float]]
Curve = tuple[str, str, dict[str, Any]]  # A metric, its label in the legend, its style.


@dataclasses.dataclass(frozen=True)
class _Panel:
    """Curves of one unit.

    Attributes:
      label: what the axis shows, with its unit.
      curves: a single one needs no label.
      height: share of the figure.
      zero: draw the line at 0.
    """

    label: str
    curves: Sequence[Curve]
    height: float = 1.0
    zero: bool = False


_HELD_OUT: dict[str, Any] = {"marker": "o", "markersize": 4, "linestyle": "--"}
_DIVERGENCES = {
    "forward_kl": "KL(TA ‖ Student)",
    "reverse_kl": "KL(Student ‖ TA)",
    "jensen_shannon": "JS(TA, Student)",
}


def unit(config: Config) -> str:
    """Of a run's losses."""
    return "nats per example" if config.model.name == "scorer" else "nats per token"


def divergence_label(config: Config) -> str:
    """What distillation lowers, as plots and reports name it."""
    return _scaled(_DIVERGENCES[config.objective.divergence], config.objective.temperature)


def _scaled(divergence: str, temperature: float) -> str:
    """Of a term: its metric holds the factor T squared, as its loss does."""
    return divergence if temperature == 1 else f"T² {divergence}, T = {temperature:g}"


def _panels(config: Config) -> list[_Panel]:
    mixes = range(config.nest.mix_per_step)
    colours = [f"C{4 + i}" for i in mixes]
    losses: list[Curve] = [
        ("student", "Student, training", {"color": "C0", "alpha": 0.7}),
        ("ta", "TA, training", {"color": "C1", "alpha": 0.7}),
        *(
            (f"mix_{i}", f"random mix {i + 1}, training", {"color": colours[i], "alpha": 0.4})
            for i in mixes
        ),
        ("eval/student", "Student, held out", {"color": "C0", **_HELD_OUT}),
        ("eval/ta", "TA, held out", {"color": "C1", **_HELD_OUT}),
    ]
    distances: list[Curve] = [
        ("gap", "loss of the Student minus loss of the TA", {"color": "C2"}),
        ("distill", divergence_label(config), {"color": "C3"}),
        *(
            (
                f"mix_{i}_distill",
                f"the same, of random mix {i + 1}",
                {"color": colours[i], "alpha": 0.4},
            )
            for i in mixes
        ),
        (
            "teacher_student",
            _scaled("KL(Teacher ‖ Student)", config.teacher.temperature),
            {"color": "0.2"},
        ),
        ("teacher_ta", _scaled("KL(Teacher ‖ TA)", config.teacher.temperature), {"color": "0.6"}),
    ]
    return [
        _Panel(f"cross-entropy, {unit(config)}", losses, 2.2),
        _Panel(f"distances, {unit(config)}", distances, 1.5, zero=True),
        _Panel("gradient norm", [("grad_norm", "", {"color": "0.3"})]),
        _Panel("learning rate", [("learning_rate", "", {"color": "0.3"})]),
    ]


def plot_curves(path: pathlib.Path, figure: Any, config: Config, metrics: Metrics) -> pathlib.Path:
    """Draws what the run has of these, over its steps; returns the path."""
    panels = _panels(config)
    all_axes = figure.subplots(
        len(panels), 1, sharex=True, height_ratios=[panel.height for panel in panels]
    )
    for axes, panel in zip(all_axes, panels, strict=True):
        for name, label, style in panel.curves:
            points = [(row["step"], row[name]) for row in metrics if row.get(name) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), label=label, **style)
        if panel.zero:
            axes.axhline(0, color="0.7", linewidth=0.8)
        axes.set_ylabel(panel.label)
        axes.grid(axis="y", color="0.93")
        if len(panel.curves) > 1 and axes.get_legend_handles_labels()[1]:
            axes.legend(frameon=False, fontsize=8)
    figure.align_ylabels()
    all_axes[-1].set_xlabel("step")
    return save_figure(figure, path)
