"""The table and the plot of a search."""

import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from matta_jax.reporting import markdown_table, new_figure, save_figure
from matta_jax.selection._space import Budget

if TYPE_CHECKING:
    from matta_jax.selection._search import Row


def table(rows: list["Row"], *, timed: bool) -> str:
    """The pick, the verified models and the ends of the nest, as Markdown."""
    header = ["", "model", "found as", "parameters", "MB", "MFLOP/token"] + [
        "ms",
        "ms predicted",
    ] * timed
    header += ["nats/token", "bits/byte", "remark"]
    lines = []
    for row in rows:
        if row.bits_per_byte is None and row.kind not in ("student", "ta"):
            continue
        remark = "" if row.within else "over budget"
        remark = remark or ("dominated" if row.dominated else "")
        times = ["-" if ms is None else f"{ms:.3g}" for ms in (row.ms, row.predicted_ms)] * timed
        lines.append(
            [
                "*" if row.pick else "",
                row.spec,
                row.kind,
                f"{row.parameters:,}",
                f"{row.mb:.2f}",
                f"{row.flops_per_token / 1e6:.2f}",
                *times,
                f"{row.loss:.4f}",
                "-" if row.bits_per_byte is None else f"{row.bits_per_byte:.4f}",
                remark,
            ]
        )
    return markdown_table(header, lines)


def plot(
    path: pathlib.Path, rows: list["Row"], budget: Budget, *, timed: bool
) -> pathlib.Path | None:
    """Quality against each cost: dominated models grey, patterns marked, limits dotted. None
    without `plots`.
    """
    costs: dict[str, Callable[[Row], float]] = {
        "parameters, millions": lambda row: row.parameters / 1e6,
        "MFLOP per token": lambda row: row.flops_per_token / 1e6,
    }
    limits = {
        "parameters, millions": budget.max_params and budget.max_params / 1e6,
        "MFLOP per token": budget.max_flops_per_token and budget.max_flops_per_token / 1e6,
        "milliseconds": budget.max_ms,
    }
    if timed:
        costs["milliseconds"] = lambda row: row.ms or row.predicted_ms or 0.0
    figure = new_figure((5.2 * len(costs), 4.2))
    if figure is None:
        return None
    panels = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    named = lambda start: [row for row in rows if row.kind.startswith(start)]
    searched = named("searched")
    groups = [
        ("dominated", [row for row in searched if row.dominated], "0.8", "o"),
        ("not dominated", [row for row in searched if not row.dominated], "C0", "o"),
        ("wide-narrow-wide", named("wide"), "C1", "^"),
        ("narrow-wide-narrow", named("narrow"), "C2", "v"),
        ("uniform", named("uniform"), "C3", "s"),
        ("Student, TA", [row for row in rows if row.kind in ("student", "ta")], "k", "D"),
    ]
    for axes, (name, cost) in zip(panels, costs.items(), strict=True):
        for label, group, colour, marker in groups:
            if group:
                colours = ["0.75" if row.dominated else colour for row in group]
                axes.scatter(
                    list(map(cost, group)),
                    [row.loss for row in group],
                    c=colours,
                    marker=marker,
                    s=22,
                    label=label,
                )
        for row in rows:
            if row.pick:
                axes.scatter(
                    [cost(row)], [row.loss], s=140, facecolors="none", edgecolors="k", label="pick"
                )
        front, best = [], float("inf")
        for row in sorted(rows, key=lambda row: (cost(row), row.loss)):
            if row.loss < best:
                best = row.loss
                front.append((cost(row), row.loss))
        axes.plot(*zip(*front, strict=True), color="0.6", linewidth=0.8, zorder=0)
        axes.set_xlabel(name)
        limit = limits.get(name)
        if limit is not None and axes.get_xlim()[0] < limit < axes.get_xlim()[1]:
            axes.axvline(limit, color="0.5", linestyle=":", label="budget")
    panels[0].set_ylabel("nats per token (lower is better)")
    panels[-1].legend(frameon=False, fontsize=8)
    return save_figure(figure, path)
