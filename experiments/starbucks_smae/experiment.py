"""SMAE (Starbucks Masked Autoencoding) before the pairs: does it help the four models of a run?"""

import pathlib
from typing import Any

from lab.protocol import Results
from lab.runs import Lab
from lab.statistics import differences, format_interval, seed_values
from starbucks.experiment import DIAGONAL, Run, Starbucks, spec_of

import matta_jax
from matta_jax.config import Config, override
from matta_jax.reporting import markdown_table, new_figure, save_figure
from matta_jax.sweeps import Overrides

PAIRS, AFTER, HIDDEN = "pairs", "pairs after SMAE", "SMAE alone"
RATE = 2e-4
"""Of one run of `starbucks/`, as the dev pairs chose it."""
SMAE_RATE = 5e-5
"""Not tuned."""
STEPS, SMAE_STEPS = 60, 80
BATCH, SMAE_BATCH = 16, 8
"""Pairs; of SMAE each is two texts."""
_MASK_ID = 103


def smae() -> Overrides:
    """What a run differs in that learns to tell hidden tokens of the same texts."""
    members = {"tall": 1.0, "grande": 1.0}
    return {
        "objective.pair_loss": "smae",
        "objective.mask_id": _MASK_ID,
        "objective.distill_weight": 0.0,
        "objective.member_weights": members,
        "objective.member_distill_weights": dict.fromkeys(members, 0.0),
        "data.score_field": None,
        "data.batch_size": SMAE_BATCH,
        "optimizer.learning_rate": SMAE_RATE,
        "optimizer.warmup_steps": SMAE_STEPS // 10,
        "train.num_steps": SMAE_STEPS,
        "train.eval_every": SMAE_STEPS,
        "train.eval_batches": 4,
        "train.checkpoint_every": SMAE_STEPS // 2,
    }


class StarbucksSmae(Starbucks):
    """One run on pairs, from weights that have learnt to tell hidden tokens of the same texts."""

    name = "starbucks_smae"

    def config(self, data: pathlib.Path, workdir: pathlib.Path) -> Config:
        """That of `starbucks/`, in smaller and fewer steps."""
        overrides = {
            "data.seq_len": 32,
            "data.batch_size": BATCH,
            "train.num_steps": STEPS,
            "train.eval_every": STEPS,
            "train.checkpoint_every": STEPS // 2,
            "optimizer.warmup_steps": STEPS // 10,
            "optimizer.learning_rate": RATE,
        }
        return override(super().config(data, workdir), overrides)

    def measure(self, lab: Lab) -> Results:
        """Trains pairs, and SMAE and then pairs, with all seeds, and scores the test pairs."""
        specs = [spec_of(*pair) for pair in DIAGONAL]
        rows: list[dict[str, Any]] = []
        for seed in self.seeds:
            (hidden,) = lab.train({HIDDEN: smae()}, [seed]).values()
            start = {"init.model": str(_extracted(hidden.workdir))}
            runs = {HIDDEN: hidden}
            for condition, overrides in {AFTER: start, PAIRS: {}}.items():
                (runs[condition],) = lab.train({condition: overrides}, [seed]).values()
            for condition, run in runs.items():
                scores = Run(run.workdir, lab.data).scores("test", specs)
                rows.append({"condition": condition, "seed": seed, **scores})
        return {"rows": rows}

    def show(self, results: Results, folder: pathlib.Path) -> str:
        """The table of the diagonal, and its picture."""
        rows = results["rows"]
        _plot(rows, folder / "starbucks_smae.png")
        header = ["model", HIDDEN, PAIRS, AFTER, "above pairs"]
        lines = []
        for layers, numbers in DIAGONAL:
            spec = spec_of(layers, numbers)
            pairs, after = (seed_values(rows, name, spec) for name in (PAIRS, AFTER))
            hidden = format_interval(seed_values(rows, HIDDEN, spec))
            cells = [f"({layers}, {numbers})", hidden, format_interval(pairs)]
            cells += [
                format_interval(after),
                format_interval(differences(after, pairs), signed=True),
            ]
            lines.append(cells)
        return markdown_table(header, lines)


def _extracted(run: pathlib.Path) -> pathlib.Path:
    """The largest model of a run, without what was beside it; extracted once."""
    folder = run / "ta"
    if not (folder / "manifest.json").is_file():
        matta_jax.extract(str(run), "ta", folder)
    return folder


def _plot(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    figure = new_figure((4.6, 3.4))
    if figure is None:
        return
    axes = figure.subplots()
    for condition in (PAIRS, AFTER, HIDDEN):
        means = []
        for pair in DIAGONAL:
            values = seed_values(rows, condition, spec_of(*pair))
            means.append(sum(values) / len(values))
        axes.plot([layers for layers, _ in DIAGONAL], means, "o-", markersize=4, label=condition)
    axes.set_xticks([layers for layers, _ in DIAGONAL], [f"({n}, {d})" for n, d in DIAGONAL])
    axes.set_xlabel("layers and numbers of a vector")
    axes.set_ylabel("Spearman on STS-B's test")
    axes.legend(frameon=False, fontsize=8)
    save_figure(figure, path)


EXPERIMENT = StarbucksSmae()
