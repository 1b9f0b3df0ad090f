"""Tables, figures and progress, as all that reports here shows them."""

import contextlib
import sys
import time
from collections.abc import (
    Callable,
    Collection,
    Generator,
    Iterable,
    Mapping,
    Sequence,
    Sized,
)
from typing import Any, TypeVar

import tqdm

from matta_jax import storage

Item = TypeVar("Item")

# Between lines of progress, where there is no terminal to draw a bar on.
_SECONDS_BETWEEN_LINES = 10.0


def progress(
    items: Iterable[Item],
    *,
    desc: str,
    unit: str,
    total: int | None = None,
    delay: float = 2.0,
    clock: Callable[[], float] = time.monotonic,
) -> Generator[Item, None, None]:
    """Yields the items, and shows on stderr how far that is: as a bar on a terminal; elsewhere, as
    in a notebook or a file, as a line every ten seconds.

    Args:
      items: what is worked on.
      desc: what is done, such as `scoring student`.
      unit: what an item is, in the plural.
      total: how many there are; None: their length, where they have one.
      delay: seconds before the bar shows.
      clock: seconds, for tests.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    # Without a console there may be no stderr at all.
    if sys.stderr is not None and sys.stderr.isatty():
        yield from tqdm.tqdm(items, desc=desc, unit=f" {unit}", total=total, delay=delay)
        return

    start = last_line = clock()
    for count, item in enumerate(items, 1):
        yield item
        # Here the item is done.
        seconds = clock() - start
        if start + seconds - last_line >= _SECONDS_BETWEEN_LINES:
            last_line = start + seconds
            _say(f"{desc}: {_how_far(count, total, seconds, unit)}")


def _how_far(count: int, total: int | None, seconds: float, unit: str) -> str:
    """`5 of 40 batches, ETA 0:30`, or where no one knows the end, `340 documents, 34/s`."""
    if total is None:
        return f"{count:,} {unit}, {count / seconds:.3g}/s"
    remaining = round(seconds / count * max(total - count, 0))
    minutes, remaining_seconds = divmod(remaining, 60)
    hours, minutes = divmod(minutes, 60)
    clock_time = f"{minutes}:{remaining_seconds:02}"
    if hours:
        clock_time = f"{hours}:{minutes:02}:{remaining_seconds:02}"
    return f"{count:,} of {total:,} {unit}, ETA {clock_time}"


def _say(line: str) -> None:
    # Work goes on where no one reads of it: stderr may be closed, or full.
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


SECONDS = "seconds/"
"""Before the name of a cause in a line of metrics, which a run's wall time is counted to."""
MOST_SECONDS = 1e10
"""Of a cause, 300 years: what is more is damage."""


def wall_time(row: Mapping[str, float]) -> tuple[float, dict[str, float]]:
    """Returns what a line of metrics tells of a run's wall time: its seconds in all, and the share
    of each cause but training steps, the largest first.
    """
    seconds = {
        name.removeprefix(SECONDS): value for name, value in row.items() if name.startswith(SECONDS)
    }
    total = sum(seconds.values())
    seconds.pop("step", None)
    losses = sorted(seconds.items(), key=lambda loss: -loss[1])
    return total, {cause: lost / total for cause, lost in losses if lost > 0}


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


def say_without_pictures(log: Callable[[str], None]) -> None:
    """Says, before the work begins, that no pictures will be drawn, where that is so."""
    if new_figure((1.0, 1.0)) is None:
        log("no pictures: pip install 'matta_jax[plots]'")


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
