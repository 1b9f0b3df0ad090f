"""How members' gradients lay to the TA's in a run that measured it (`train.cosine_every`)."""

import statistics

from matta_jax.evaluation._curves import Metrics
from matta_jax.reporting import markdown_table

_PREFIX = "cosine/"


def cosine_table(metrics: Metrics) -> str | None:
    """A row for each member: the cosine of its gradient with the TA's on the weights that both
    have, first, last, and the least and mean of all; None where a run has not measured it.
    """
    values: dict[str, list[float]] = {}
    for row in metrics:
        for name, value in row.items():
            if name.startswith(_PREFIX):
                values.setdefault(name.removeprefix(_PREFIX), []).append(value)
    if not values:
        return None
    lines = []
    for name, cosines in values.items():
        figures = (cosines[0], cosines[-1], min(cosines), statistics.fmean(cosines))
        lines.append([name, *(f"{figure:.3f}" for figure in figures), str(len(cosines))])
    headings = ["cosine with the TA's gradient", "first", "last", "least", "mean", "measured"]
    return markdown_table(headings, lines, left=(0,))
