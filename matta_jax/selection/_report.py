"""The table and the plot of a search."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from matta_jax import storage
from matta_jax.reporting import markdown_table, new_figure, save_figure
from matta_jax.selection._rows import Row
from matta_jax.selection._space import Budget


@dataclasses.dataclass(frozen=True)
class _Panel:
    """One cost that quality is plotted against, and the budget's limit of it."""

    name: str
    cost: Callable[[Row], float]
    limit: float | None


@dataclasses.dataclass(frozen=True)
class _Group:
    """Models of one kind, and how they are drawn."""

    label: str
    rows: list[Row]
    colour: str
    marker: str


def table(rows: list[Row], *, timed: bool) -> str:
    """The pick, the verified models and the ends of the nest, as Markdown."""
    header = ["", "model", "found as", "parameters", "MB", "MFLOP/token"]
    if timed:
        header += ["ms", "ms predicted"]
    header += ["nats/token", "bits/byte", "remark"]

    lines = []
    for row in rows:
        is_verified = row.bits_per_byte is not None
        # All that were scored stand in search.json: people look at what may be picked.
        if is_verified or row.kind in ("student", "ta"):
            lines.append(_cells(row, timed=timed))
    return markdown_table(header, lines)


def _cells(row: Row, *, timed: bool) -> list[str]:
    cells = [
        "*" if row.pick else "",
        row.spec,
        row.kind,
        f"{row.parameters:,}",
        f"{row.mb:.2f}",
        f"{row.flops_per_token / 1e6:.2f}",
    ]
    if timed:
        for ms in (row.ms, row.predicted_ms):
            cells.append("-" if ms is None else f"{ms:.3g}")

    cells.append(f"{row.loss:.4f}")
    cells.append("-" if row.bits_per_byte is None else f"{row.bits_per_byte:.4f}")
    cells.append(_remark(row))
    return cells


def _remark(row: Row) -> str:
    if not row.within:
        return "over budget"
    return "dominated" if row.dominated else ""


def plot(
    path: storage.Path, rows: list[Row], budget: Budget, *, timed: bool
) -> storage.Path | None:
    """Quality against each cost: dominated models grey, patterns marked, limits dotted. None
    without `plots`.
    """
    panels = _panels(budget, timed=timed)
    figure = new_figure((5.2 * len(panels), 4.2))
    if figure is None:
        return None

    # The panels share their losses, so a model stands at one height in all of them.
    all_axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    groups = _groups(rows)
    for axes, panel in zip(all_axes, panels, strict=True):
        _scatter(axes, groups, panel.cost)
        _mark_pick(axes, rows, panel.cost)
        _draw_front(axes, rows, panel.cost)
        axes.set_xlabel(panel.name)
        # Last: whether the limit lies within the panel depends on all that is drawn in it.
        _draw_limit(axes, panel.limit)

    all_axes[0].set_ylabel("nats per token (lower is better)")
    all_axes[-1].legend(frameon=False, fontsize=8)
    return save_figure(figure, path)


def _panels(budget: Budget, *, timed: bool) -> list[_Panel]:
    # Megabytes have no panel of their own: they are parameters by the bytes of a type.
    max_params = budget.max_params and budget.max_params / 1e6
    max_flops = budget.max_flops_per_token and budget.max_flops_per_token / 1e6
    panels = [
        _Panel("parameters, millions", lambda row: row.parameters / 1e6, max_params),
        _Panel("MFLOP per token", lambda row: row.flops_per_token / 1e6, max_flops),
    ]
    if timed:
        panels.append(_Panel("milliseconds", _milliseconds, budget.max_ms))
    return panels


def _milliseconds(row: Row) -> float:
    # A model that was not measured stands at the time that is predicted of it.
    return row.ms or row.predicted_ms or 0.0


def _groups(rows: Sequence[Row]) -> list[_Group]:
    # A pattern's kind goes on after its name with the number of wide layers, or the width.
    def of_kind(start: str) -> list[Row]:
        return [row for row in rows if row.kind.startswith(start)]

    searched = of_kind("searched")
    dominated = [row for row in searched if row.dominated]
    not_dominated = [row for row in searched if not row.dominated]
    ends = [row for row in rows if row.kind in ("student", "ta")]
    return [
        _Group("dominated", dominated, "0.8", "o"),
        _Group("not dominated", not_dominated, "C0", "o"),
        _Group("wide-narrow-wide", of_kind("wide"), "C1", "^"),
        _Group("narrow-wide-narrow", of_kind("narrow"), "C2", "v"),
        _Group("uniform", of_kind("uniform"), "C3", "s"),
        _Group("Student, TA", ends, "k", "D"),
    ]


def _scatter(axes: Any, groups: Sequence[_Group], cost: Callable[[Row], float]) -> None:
    for group in groups:
        # The legend names no group without a model.
        if not group.rows:
            continue

        colours = ["0.75" if row.dominated else group.colour for row in group.rows]
        axes.scatter(
            [cost(row) for row in group.rows],
            [row.loss for row in group.rows],
            c=colours,
            marker=group.marker,
            s=22,
            label=group.label,
        )


def _mark_pick(axes: Any, rows: Sequence[Row], cost: Callable[[Row], float]) -> None:
    for row in rows:
        if row.pick:
            axes.scatter(
                [cost(row)], [row.loss], s=140, facecolors="none", edgecolors="k", label="pick"
            )


def _draw_front(axes: Any, rows: Sequence[Row], cost: Callable[[Row], float]) -> None:
    """Draws a line through the models that no cheaper one is as good as."""
    costs, losses = [], []
    lowest_loss = float("inf")
    for row in sorted(rows, key=lambda row: (cost(row), row.loss)):
        if row.loss < lowest_loss:
            lowest_loss = row.loss
            costs.append(cost(row))
            losses.append(row.loss)
    axes.plot(costs, losses, color="0.6", linewidth=0.8, zorder=0)


def _draw_limit(axes: Any, limit: float | None) -> None:
    # A limit beyond all models would stretch the panel.
    lowest, highest = axes.get_xlim()
    if limit is not None and lowest < limit < highest:
        axes.axvline(limit, color="0.5", linestyle=":", label="budget")
