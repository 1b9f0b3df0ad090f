def rows_of(condition, values, **figures):
    """A row for each seed and value of the Student."""
    about = {"condition": condition, "steps": 5, "tflops": 1.0}
    return [about | {"seed": seed, "student": value} | figures for seed, value in values.items()]


def test_a_comparison_is_paired_by_seed(load):
    figures, statistics = load("lab.figures"), load("lab.statistics")
    values = {2: 7.0, 0: 1.0, 1: 3.0}  # Seeds differ by far more than conditions do.
    worse = {seed: value + 0.5 for seed, value in values.items()}
    rows = rows_of("a", values) + rows_of("b", worse)
    lines = [figures.Line("a"), figures.Line("b", "student", ("a", "student"))]
    table = figures.comparison(rows, lines)
    assert "+0.5000 (+0.5000 to +0.5000)" in table
    assert statistics.seed_values(rows, "a", "student") == [1.0, 3.0, 7.0]


def test_a_model_has_a_name_where_its_condition_has_two(load):
    figures = load("lab.figures")
    rows_of_one = rows_of("alone", {0: 3.0, 1: 4.0})
    rows_of_two = [row | {"condition": "MatTA", "ta": 2.0 + row["seed"]} for row in rows_of_one]
    lines = [
        figures.Line("MatTA", "ta", ("alone", "student")),
        figures.Line("MatTA", "student", ("MatTA", "ta")),
    ]
    table = figures.comparison(rows_of_one + rows_of_two, lines).splitlines()
    cells = [[cell.strip() for cell in line.split("|")] for line in table]
    assert [(row[2], row[5]) for row in cells[2:4]] == [("TA", "alone"), ("Student", "MatTA TA")]
    assert figures.model_name(rows_of_one, "alone", "student") == ""


def test_a_plot_is_drawn(load, tmp_path):
    figures = load("lab.figures")
    rows = rows_of("alone", {0: 3.0, 1: 4.0}) + rows_of("MatTA", {0: 2.0, 1: 3.0}, ta=1.0)
    lines = [figures.Line("alone"), figures.Line("MatTA"), figures.Line("MatTA", "ta")]
    figures.plot_comparison(rows, lines, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
