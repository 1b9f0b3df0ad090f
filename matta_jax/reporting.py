"""Tables and figures, as every report here draws them."""

import pathlib
from collections.abc import Collection, Sequence
from typing import Any


def markdown_table(
    header: Sequence[str], lines: Sequence[Sequence[str]], *, left: Collection[int] | None = None
) -> str:
    """Returns a Markdown table; the columns `left` (None: all) are aligned to the left, the others
    to the right.
    """
    widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]

    def text(line: Sequence[str]) -> str:
        cells = [
            cell.ljust(width) if left is None or i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        return "| " + " | ".join(cells) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([text(header), rule, *map(text, lines)])


def new_figure(figsize: tuple[float, float]) -> Any:
    """Returns an empty figure of so many inches, or None where the extra `plots` is
    not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        return None
    matplotlib.rcParams.update(
        {"axes.spines.top": False, "axes.spines.right": False, "font.size": 10}
    )
    return Figure(figsize=figsize, layout="constrained")


def save_figure(figure: Any, path: pathlib.Path) -> pathlib.Path:
    """Writes a figure as PNG, whole or not at all; returns its path."""
    beside = path.with_name(path.stem + ".tmp.png")
    figure.savefig(beside, dpi=150)
    beside.replace(path)
    return path
