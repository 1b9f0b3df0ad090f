"""Statistics over seeds: means, and Student's t intervals of differences paired by seed."""

import statistics
from collections.abc import Sequence
from typing import Any

import scipy.stats

Row = dict[str, Any]
"""What is known of one run: its `condition`, its `seed`, and its figures by name."""


def seed_values(rows: Sequence[Row], condition: str, figure: str) -> list[float]:
    """A figure of a condition, in the order of the seeds."""
    of_condition = [row for row in rows if row["condition"] == condition]
    of_condition.sort(key=lambda row: row["seed"])
    return [row[figure] for row in of_condition]


def differences(values: Sequence[float], reference: Sequence[float]) -> list[float]:
    """`values` minus `reference`, seed by seed. Raises ValueError unless they are as many."""
    return [value - paired for value, paired in zip(values, reference, strict=True)]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean, and half its 95 % interval by Student's t over seeds."""
    count = len(values)
    half = scipy.stats.t.ppf(0.975, count - 1) * statistics.stdev(values) / count**0.5
    return statistics.mean(values), float(half)


def format_interval(values: Sequence[float], *, signed: bool = False) -> str:
    """A mean with its interval, for tables: `3.1000 ± 0.0200`; signed, for a difference, with its
    ends: `-0.0200 (-0.0300 to -0.0100)`.
    """
    mean, half = interval(values)
    if signed:
        return f"{mean:+.4f} ({mean - half:+.4f} to {mean + half:+.4f})"
    return f"{mean:.4f} ± {half:.4f}"
