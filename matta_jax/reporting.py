"""Tables and figures, as every report here draws them."""

from collections.abc import Collection, Sequence
from typing import Any

from matta_jax import storage


def markdown_table(
    header: Sequence[str], lines: Sequence[Sequence[str]], *, left: Collection[int] | None = None
) -> str:
    """Returns a Markdown table; the columns `left` (None: all) are aligned to the left, the others
    to the right.
    """
    columns = range(len(header))
    widths = [max(len(line[column]) for line in [header, *lines]) for column in columns]

    def row(line: Sequence[str]) -> str:
        cells = []
        for column, (cell, width) in enumerate(zip(line, widths, strict=True)):
            is_left = left is None or column in left
            cells.append(cell.ljust(width) if is_left else cell.rjust(width))
        return "| " + " | ".join(cells) + " |"

    # A rule covers a cell and the space on either side of it.
    rules = ["-" * (width + 2) for width in widths]
    rule = "|" + "|".join(rules) + "|"
    return "\n".join([row(header), rule, *map(row, lines)])


def new_figure(figsize: tuple[float, float]) -> Any:
    """Returns an empty figure of so many inches, or None where the extra `plots` is
    not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        return None

    style = {"axes.spines.top": False, "axes.spines.right": False, "font.size": 10}
    matplotlib.rcParams.update(style)
    # Without pyplot, which would keep each figure, and look for a screen.
    return Figure(figsize=figsize, layout="constrained")


def save_figure(figure: Any, path: storage.Path) -> storage.Path:
    """Writes a figure as PNG, whole or not at all; returns its path."""
    with storage.new_file(path) as beside:
        figure.savefig(beside, dpi=150, format="png")
    return path
