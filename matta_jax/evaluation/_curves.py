"""The curves of a run: a panel for each kind of figure, each with its own unit and scale."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from matta_jax import storage
from matta_jax.config import Config
from matta_jax.nesting import nest_of
from matta_jax.reporting import save_figure

Metrics = Sequence[dict[str, float]]
# A metric, its label in the legend, its style.
Curve = tuple[str, str, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Panel:
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
    return "nats per example" if config.model.reads_examples else "nats per token"


def divergence_label(config: Config) -> str:
    """What distillation lowers, as plots and reports name it."""
    return _scaled(_DIVERGENCES[config.objective.divergence], config.objective.temperature)


def _scaled(divergence: str, temperature: float) -> str:
    """Of a term: its metric holds the factor T squared, as its loss does."""
    if temperature == 1:
        return divergence
    return f"T² {divergence}, T = {temperature:g}"


def panels_of(config: Config) -> list[Panel]:
    """The panels of a run's curves, from top to bottom."""
    return [
        Panel(f"cross-entropy, {unit(config)}", _losses(config), 2.2),
        Panel(f"distances, {unit(config)}", _distances(config), 1.5, zero=True),
        Panel("gradient norm", [("grad_norm", "", {"color": "0.3"})]),
        Panel("learning rate", [("learning_rate", "", {"color": "0.3"})]),
    ]


def _losses(config: Config) -> list[Curve]:
    """The Student is blue and the TA orange, in training and held out."""
    curves: list[Curve] = [
        ("student", "Student, training", {"color": "C0", "alpha": 0.7}),
        ("ta", "TA, training", {"color": "C1", "alpha": 0.7}),
    ]
    for i in range(config.nest.mix_per_step):
        curves.append((f"mix_{i}", f"random mix {i + 1}, training", _mix_style(i)))
    curves.append(("eval/student", "Student, held out", {"color": "C0", **_HELD_OUT}))
    curves.append(("eval/ta", "TA, held out", {"color": "C1", **_HELD_OUT}))
    return curves


def _distances(config: Config) -> list[Curve]:
    temperature = config.teacher.temperature
    curves: list[Curve] = [
        ("gap", "loss of the Student minus loss of the TA", {"color": "C2"}),
        ("distill", divergence_label(config), {"color": "C3"}),
    ]
    for i in range(config.nest.mix_per_step):
        curves.append((f"mix_{i}_distill", f"the same, of random mix {i + 1}", _mix_style(i)))
    curves.append(
        ("teacher_student", _scaled("KL(Teacher ‖ Student)", temperature), {"color": "0.2"})
    )
    curves.append(("teacher_ta", _scaled("KL(Teacher ‖ TA)", temperature), {"color": "0.6"}))
    return curves


def _mix_style(i: int) -> dict[str, Any]:
    """The first four colours are those of Student, TA and their distances."""
    return {"color": f"C{4 + i}", "alpha": 0.4}


def plot_curves(path: storage.Path, figure: Any, config: Config, metrics: Metrics) -> storage.Path:
    """Draws what the run has of these, over its steps; returns the path."""
    panels = panels_of(config)
    heights = [panel.height for panel in panels]
    all_axes = figure.subplots(len(panels), 1, sharex=True, height_ratios=heights)
    for axes, panel in zip(all_axes, panels, strict=True):
        _plot_panel(axes, panel, metrics)

    nest = nest_of(config)
    title = "Training"
    if nest.student != nest.ta:
        title += ": the TA (Teaching Assistant) is the whole model, the Student its smallest part"
    all_axes[0].set_title(title, fontsize=10)
    figure.align_ylabels()
    all_axes[-1].set_xlabel("step")
    return save_figure(figure, path)


def _plot_panel(axes: Any, panel: Panel, metrics: Metrics) -> None:
    for name, label, style in panel.curves:
        # Not every row has every metric, and a run may not have one at all.
        rows = [row for row in metrics if row.get(name) is not None]
        if not rows:
            continue
        steps = [row["step"] for row in rows]
        values = [row[name] for row in rows]
        axes.plot(steps, values, label=label, **style)

    if panel.zero:
        axes.axhline(0, color="0.7", linewidth=0.8)
    axes.set_ylabel(panel.label)
    axes.grid(axis="y", color="0.93")

    _, labels = axes.get_legend_handles_labels()
    if labels and len(panel.curves) > 1:
        axes.legend(frameon=False, fontsize=8)
