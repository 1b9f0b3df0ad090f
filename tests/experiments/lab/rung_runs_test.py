"""Runs of a rung: what is tuned, on what, and what is measured once."""

import pytest

from matta_jax.errors import UserError


@pytest.mark.parametrize(("best", "tried"), [(0.02, 3), (0.07, 5), (0.006, 5), (9.0, 6)])
def test_the_grid_of_rates_goes_on_where_the_best_is_at_its_end(load, best, tried):
    asked = []

    def loss_of(rate):
        asked.append(rate)
        return abs(rate - best)

    rate = load("lab.rung_runs").best_of_grid(loss_of, (0.01, 0.02, 0.04))
    assert rate == min(asked, key=lambda rate: abs(rate - best))
    assert len(set(asked)) == len(asked) == tried


def test_a_condition_has_the_rate_that_is_best_on_the_validation_text(load, made_up_runs):
    runs, asked = made_up_runs(best_rate=0.04)
    rows = runs.rows(
        {
            "MatTA": {},
            "alone": load("lab.rungs").lone_width(16),
            "set": {"optimizer.learning_rate": 0.5},
        },
        (0, 1),
    )
    rates = {row["condition"]: row["learning_rate"] for row in rows}
    assert rates == {"MatTA": 0.04, "alone": 0.04, "set": 0.5}
    assert [("ta" in row) for row in rows] == [True, True, False, False, True, True]
    # Nothing is tuned on the text that is reported.
    assert {(seed == 100, side) for seed, side, _ in asked} == {
        (True, "validation"),
        (False, "test"),
    }


def test_what_other_processes_train_is_left_out_until_it_is_there(made_up_runs):
    runs, _ = made_up_runs(best_rate=0.02, missing={("MatTA", 1)})
    rows = runs.rows({"MatTA": {}, "no mix": {"nest.mix_per_step": 0}}, (0, 1))
    assert {row["condition"] for row in rows} == {"no mix"}
    with pytest.raises(UserError, match="no condition has all of its runs yet"):
        runs.rows({"MatTA": {}}, (0, 1))


def test_a_model_is_measured_once(made_up_runs):
    runs, asked = made_up_runs(best_rate=0.02)
    [run] = runs.train("MatTA", {"optimizer.learning_rate": 0.02}, (0,))
    first = runs.bits(run, "test", ["student"])
    both = runs.bits(run, "test", ["ta", "student"])
    assert list(both) == ["ta", "student"] and both["student"] == first["student"]
    assert [specs for _, _, specs in asked] == [["student"], ["ta"]]
