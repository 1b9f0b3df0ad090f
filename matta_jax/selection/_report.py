"""The table and the plot of a search."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from matta_jax import storage
from matta_jax.config import Config
from matta_jax.packages import DTYPES
from matta_jax.reporting import markdown_table, new_figure, save_figure
from matta_jax.selection._rows import Row
from matta_jax.selection._space import Budget
from matta_jax.selection.scoring import ranks_by_order

_GREY = "0.75"
_MARKERS = "osD^vP"
_DOMINATED = "grey, any shape: another model costs no more and is better"


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


def units_of(config: Config) -> tuple[str, str]:
    """What a model's loss is counted in: on the part of the corpus, and on all of it."""
    if ranks_by_order(config):
        return "1 - Spearman", "1 - Spearman, all"
    if config.model.reads_examples:
        return "nats/example", "nats/example, all"
    return "nats/token", "bits/byte"


def table(rows: list[Row], units: tuple[str, str], *, engine: str | None) -> str:
    """The pick, the verified models and the ends of the nest, as Markdown; with the milliseconds of
    an engine, where one was timed.
    """
    timed = engine is not None
    header = ["", "model", "found as", "parameters", "MB", "MFLOP/token"]
    has_files = any(row.file_mb is not None for row in rows)
    if has_files:
        header += ["type", "file MB"]
    if timed:
        header += [f"ms, {engine}", "ms predicted"]
    header += [*units, "remark"]

    lines = []
    for row in rows:
        is_verified = row.verified is not None
        # All that were scored stand in search.json: people look at what may be picked.
        if is_verified or row.kind in ("student", "ta"):
            lines.append(_cells(row, has_files=has_files, timed=timed))
    return markdown_table(header, lines)


def _cells(row: Row, *, has_files: bool, timed: bool) -> list[str]:
    cells = [
        "*" if row.pick else "",
        row.spec,
        row.kind,
        f"{row.parameters:,}",
        f"{row.mb:.2f}",
        f"{row.flops_per_token / 1e6:.2f}",
    ]
    if has_files:
        cells += [str(row.numbers), "-" if row.file_mb is None else f"{row.file_mb:.3f}"]
    if timed:
        spread = "" if row.ms_spread is None else f" ± {row.ms_spread:.0%}"
        cells.append("-" if row.ms is None else f"{row.ms:.3g}{spread}")
        cells.append("-" if row.predicted_ms is None else f"{row.predicted_ms:.3g}")

    cells.append(f"{row.loss:.4f}")
    cells.append("-" if row.verified is None else f"{row.verified:.4f}")
    cells.append(_remark(row))
    return cells


def _remark(row: Row) -> str:
    if not row.within:
        return "over budget"
    return "dominated" if row.dominated else ""


def plot(
    path: storage.Path, rows: list[Row], budget: Budget, units: tuple[str, str], *, timed: bool
) -> storage.Path | None:
    """Quality against each cost: dominated models grey, patterns marked, limits dotted; what each
    sign means stands below. None without `plots`.
    """
    has_files = any(row.file_mb is not None for row in rows)
    panels = _panels(budget, has_files=has_files, timed=timed)
    figure = new_figure((5.2 * len(panels), 5.2))
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

    all_axes[0].set_ylabel(f"quality: {units[0]}, lower is better")
    figure.suptitle(_title(rows, budget), fontsize=11)
    _legend(figure, all_axes)
    return save_figure(figure, path)


def _title(rows: Sequence[Row], budget: Budget) -> str:
    """What the picture shows; the budget too, since a limit beyond all models has no line."""
    limits = [f"{name} {limit:,g}" for name, limit in budget.limits().items()]
    return (
        f"Search: {len(rows)} sub-models of one training run, each scored on held-out data\n"
        f"budget: {', '.join(limits) or 'none'}"
    )


def _legend(figure: Any, all_axes: Sequence[Any]) -> None:
    """One legend of all panels: a limit may be drawn in one of them alone."""
    handles: dict[str, Any] = {}
    for axes in all_axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize=8,
    )


def _panels(budget: Budget, *, has_files: bool, timed: bool) -> list[_Panel]:
    # Megabytes have no panel of their own: they are parameters by the bytes of a type.
    limits = [] if budget.max_params is None else [budget.max_params / 1e6]
    if budget.max_mb is not None:
        limits.append(budget.max_mb / jnp.dtype(DTYPES[budget.dtype]).itemsize)
    max_params = min(limits, default=None)
    max_flops = budget.max_flops_per_token and budget.max_flops_per_token / 1e6
    panels = [
        _Panel("parameters, millions", lambda row: row.parameters / 1e6, max_params),
        _Panel("MFLOP per token", lambda row: row.flops_per_token / 1e6, max_flops),
    ]
    if has_files:
        panels.append(_Panel("MB of the file", lambda row: row.file_mb or 0.0, budget.max_file_mb))
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

    # Types share a plot: what differs is told by colour, and kinds by the table.
    types = list(dict.fromkeys(row.numbers for row in rows))
    if len(types) > 1:
        return [
            _Group(str(name), [row for row in rows if row.numbers == name], f"C{i}", _MARKERS[i])
            for i, name in enumerate(types)
        ]

    ends = [row for row in rows if row.kind in ("student", "ta")]
    return [
        _Group("searched", of_kind("searched"), "C0", "o"),
        _Group("pattern wide-narrow-wide", of_kind("wide"), "C1", "^"),
        _Group("pattern narrow-wide-narrow", of_kind("narrow"), "C2", "v"),
        _Group("uniform: all layers of one width", of_kind("uniform"), "C3", "s"),
        _Group("Student (smallest) and TA (largest)", ends, "k", "D"),
    ]


def _scatter(axes: Any, groups: Sequence[_Group], cost: Callable[[Row], float]) -> None:
    for group in groups:
        # The legend names no group without a model.
        if not group.rows:
            continue
        best = [row for row in group.rows if not row.dominated]
        # Its colour stands in the legend, even where all of a group are grey.
        _draw(axes, best, cost, color=group.colour, marker=group.marker, label=group.label)

    # Each group's marker, behind what is worth a look.
    has_label = False
    for group in groups:
        dominated = [row for row in group.rows if row.dominated]
        if dominated:
            label = "_" if has_label else _DOMINATED
            has_label = True
            _draw(axes, dominated, cost, color=_GREY, marker=group.marker, label=label, zorder=0.5)


def _draw(axes: Any, rows: Sequence[Row], cost: Callable[[Row], float], **style: Any) -> None:
    axes.scatter([cost(row) for row in rows], [row.loss for row in rows], s=22, **style)


def _mark_pick(axes: Any, rows: Sequence[Row], cost: Callable[[Row], float]) -> None:
    for row in rows:
        if row.pick:
            axes.scatter(
                [cost(row)], [row.loss], s=140, facecolors="none", edgecolors="k", label="the pick"
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
    label = "best quality up to each cost"
    axes.plot(costs, losses, color="0.6", linewidth=0.8, zorder=0, label=label)


def _draw_limit(axes: Any, limit: float | None) -> None:
    # A limit beyond all models would stretch the panel.
    lowest, highest = axes.get_xlim()
    if limit is not None and lowest < limit < highest:
        axes.axvline(limit, color="0.5", linestyle=":", label="limit of the budget")
