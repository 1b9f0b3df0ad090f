"""SMAE's experiment: its runs, and its table."""

import pytest

from matta_jax.config import override
from matta_jax.models import plan_of


@pytest.fixture
def experiment(load):
    return load("starbucks_smae.experiment")


def test_pairs_start_from_what_hidden_tokens_taught(experiment, tmp_path):
    config = experiment.EXPERIMENT.config(tmp_path, tmp_path)
    hidden = override(config, experiment.smae())
    assert hidden.objective.pair_loss == "smae" and config.objective.pair_loss == "cosent"
    # The same models, of which the first run's has a decoder beside it.
    assert plan_of(hidden).nest == plan_of(config).nest
    assert plan_of(hidden).has_scaffold and not plan_of(config).has_scaffold
    assert hidden.data.source == config.data.source


def test_the_table_is_of_pairs_with_and_without(experiment, load, tmp_path):
    diagonal = load("starbucks.experiment").DIAGONAL
    spec_of = load("starbucks.experiment").spec_of
    rows = []
    levels = {experiment.HIDDEN: 0.4, experiment.PAIRS: 0.7, experiment.AFTER: 0.75}
    for condition, level in levels.items():
        for seed in range(3):
            scores = {spec_of(*pair): level + seed / 100 for pair in diagonal}
            rows.append({"condition": condition, "seed": seed, **scores})
    text = experiment.EXPERIMENT.show({"rows": rows}, tmp_path)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    cells = ["0.4100 ± 0.0248", "0.7100 ± 0.0248", "0.7600 ± 0.0248"]
    assert ["(2, 64)", *cells, "+0.0500 (+0.0500 to +0.0500)"] in lines
    assert (tmp_path / "starbucks_smae.png").is_file()
