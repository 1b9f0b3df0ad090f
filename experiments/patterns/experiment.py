"""Which layers of a mix should be wide? Patterns and a search, at equal parameters, out of runs
that trained random mixes.
"""

import itertools
import pathlib

from lab.books import REPORTED_ON
from lab.protocol import Results
from lab.rung_runs import UNIT, RungExperiment, RungRuns, SeedRun, at_rate, mean_bits
from lab.rungs import Rung
from lab.runs import Lab, stored
from lab.statistics import Row, differences, format_interval, interval
from ladder.experiment import best_rate
from ladder.recipes import WITH_A_MIX, conditions_of

import matta_jax
from matta_jax.reporting import markdown_table, new_figure, save_figure
from matta_jax.selection import Budget

PAPERS = "wide-narrow-wide"
SEARCHED = "search"


class Patterns(RungExperiment):
    """Two wide and two narrow layers in all orders, for three pairs of widths; and a search."""

    name = "patterns"

    def measure(self, lab: Lab) -> Results:
        """Scores models of the ladder's runs with a mix; the search reads the validation text."""
        runs = RungRuns(lab, self.rung, self.length)
        overrides = at_rate(conditions_of(self.rung)[WITH_A_MIX], best_rate(runs, WITH_A_MIX))
        rows = []
        for run in runs.train(WITH_A_MIX, overrides, self.seeds):
            for wide, narrow in pairs_of(self.rung):
                rows += _scored(runs, run, wide, narrow)
        return {"rows": rows}

    def show(self, results: Results, folder: pathlib.Path) -> str:
        """A table by pattern and pair of widths, and the picture."""
        rows = results["rows"]
        _plot(rows, folder / "patterns.png")
        return _table(rows)


def pairs_of(rung: Rung) -> list[tuple[int, int]]:
    """Wide and narrow widths: the ends of the nest, and two pairs nearer to each other."""
    smallest, small, middle, large, largest = rung.widths
    del middle
    return [(largest, smallest), (large, smallest), (large, small)]


def patterns_of(num_layers: int) -> dict[str, tuple[bool, ...]]:
    """All orders of as many wide as narrow layers; those with a name first, by it."""
    names = {
        (True, False, False, True): PAPERS,
        (False, True, True, False): "narrow-wide-narrow",
        (True, True, False, False): "wide first",
        (False, False, True, True): "wide last",
    }
    orders = sorted(set(itertools.permutations((True, False) * (num_layers // 2))))
    unnamed = {order: "".join("wn"[not wide] for wide in order) for order in orders}
    return {name: order for order, name in (names | unnamed | names).items()}


def _scored(runs: RungRuns, run: SeedRun, wide: int, narrow: int) -> list[Row]:
    specs = {}
    for pattern, order in patterns_of(runs.rung.num_layers).items():
        widths = [wide if is_wide else narrow for is_wide in order]
        specs[pattern] = "d_ff=" + ",".join(map(str, widths))
    parameters = runs.bits(run, REPORTED_ON, [specs[PAPERS]])[specs[PAPERS]]["parameters"]

    output = run.workdir / f"search_{parameters}"
    pick = stored(run.workdir / f"search_{parameters}.json", lambda: _pick(run, output, parameters))
    specs[SEARCHED] = pick

    scores = runs.bits(run, REPORTED_ON, list(specs.values()))
    about = {"seed": run.seed, "wide": wide, "narrow": narrow}
    return [
        about
        | {"condition": pattern, "spec": spec, "parameters": scores[spec]["parameters"]}
        | {"bits": mean_bits(scores[spec])}
        for pattern, spec in specs.items()
    ]


def _pick(run: SeedRun, output: pathlib.Path, parameters: int) -> str:
    result = matta_jax.search(
        str(run.workdir), output, budget=Budget(max_params=parameters), log=lambda line: None
    )
    return result.pick.spec


def _bits(rows: list[Row], pattern: str, wide: int, narrow: int) -> list[float]:
    there = [
        row
        for row in rows
        if (row["condition"], row["wide"], row["narrow"]) == (pattern, wide, narrow)
    ]
    there.sort(key=lambda row: row["seed"])
    return [row["bits"] for row in there]


def _keys(rows: list[Row]) -> tuple[list[str], list[tuple[int, int]]]:
    patterns = list(dict.fromkeys(row["condition"] for row in rows))
    pairs = list(dict.fromkeys((row["wide"], row["narrow"]) for row in rows))
    return patterns, pairs


def _table(rows: list[Row]) -> str:
    patterns, pairs = _keys(rows)
    lines = []
    for pattern in patterns:
        cells = []
        for pair in pairs:
            bits = _bits(rows, pattern, *pair)
            if pattern == PAPERS:
                cells.append(format_interval(bits))
            else:
                difference = differences(bits, _bits(rows, PAPERS, *pair))
                cells.append(format_interval(difference, signed=True))
        lines.append([pattern, *cells])
    header = ["layers", *(f"{wide} and {narrow}" for wide, narrow in pairs)]
    return (
        f"{UNIT.capitalize()} of {PAPERS}, and of others the difference to it:\n\n"
        + markdown_table(header, lines, left=(0,))
    )


def _plot(rows: list[Row], path: pathlib.Path) -> None:
    patterns, pairs = _keys(rows)
    figure = new_figure((8.0, 3.6))
    grid = figure.subplots(1, len(pairs), sharey=True, squeeze=False)[0]
    for axes, pair in zip(grid, pairs, strict=True):
        for i, pattern in enumerate(patterns):
            mean, half = interval(_bits(rows, pattern, *pair))
            axes.errorbar([mean], [-i], xerr=[half], fmt="o", color="C0", capsize=3)
        axes.set_title(f"d_ff {pair[0]} and {pair[1]}", fontsize=10)
        axes.set_xlabel(f"{UNIT} (lower is better)")
        axes.grid(axis="x", color="0.92")
    grid[0].set_yticks([-i for i in range(len(patterns))], patterns)
    save_figure(figure, path)


EXPERIMENT = Patterns()
