"""The report's table of gradients."""

from matta_jax.evaluation._cosines import cosine_table


def test_a_row_for_each_member():
    metrics = [
        {"step": 1, "loss": 2.0},
        {"step": 2, "cosine/student": 0.8, "cosine/members/a": 0.9},
        {"step": 4, "cosine/student": -0.2, "cosine/members/a": 0.7},
        {"step": 6, "cosine/student": 0.3, "cosine/members/a": 0.8},
    ]
    table = cosine_table(metrics).splitlines()
    assert [cell.strip() for cell in table[2].split("|")[1:-1]] == [
        "student",
        "0.800",
        "0.300",
        "-0.200",
        "0.300",
        "3",
    ]
    assert "members/a" in table[3] and len(table) == 4


def test_a_run_that_measured_none_has_no_table():
    assert cosine_table([{"step": 1, "loss": 2.0}]) is None
