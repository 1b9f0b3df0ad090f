import pytest

from matta_jax.evaluation import _sizes
from matta_jax.reporting import new_figure


def make_row(name, parameters, **scores):
    return {
        "name": name,
        "layers": 2,
        "d_model": 16,
        "widths": [16, 32],
        "parameters": parameters,
        "mb": 1.0,
        "flops_per_token": 2e6,
        "scores": {f"{task}:held_out": value for task, value in scores.items()},
    }


ROWS = [
    make_row("student", 1_000_000, bits_per_byte=2.0),
    make_row("layers=2", 2_000_000, bits_per_byte=2.5),
    make_row("layers=3", 3_000_000, perplexity=9.0),
    make_row("ta", 4_000_000, bits_per_byte=1.5),
]


def test_a_picture_names_every_scored_model_and_joins_the_best(tmp_path):
    picture = new_figure((4, 4))
    path = _sizes.plot_sizes(tmp_path / "sizes.png", picture, ROWS, {"unigram entropy": 4.5})
    assert path.stat().st_size > 100
    axes = picture.axes[0]
    assert [text.get_text() for text in axes.texts] == ["Student", "layers=2", "TA"]
    assert [tuple(point) for point in axes.lines[0].get_xydata()] == [(1.0, 2.0), (4.0, 1.5)]
    assert (
        axes.get_title() == "One training run, many models\non the same text: unigram entropy 4.50"
    )


def test_of_scorers_the_larger_auc_is_better(tmp_path):
    rows = [make_row(f"m{i}", i, auc=value) for i, value in enumerate((0.5, 0.9, 0.7), start=1)]
    picture = new_figure((4, 4))
    _sizes.plot_sizes(tmp_path / "sizes.png", picture, rows, {"TF-IDF cosine": 0.6})
    axes = picture.axes[0]
    assert list(axes.lines[0].get_ydata()) == [0.5, 0.9]
    assert axes.get_ylabel() == "held-out AUC (higher is better)"
    assert axes.get_title().endswith("TF-IDF cosine 0.600")


def test_the_table_shows_a_width_once_and_a_missing_figure_as_a_dash():
    assert _sizes.width_text([8, 8]) == "8" and _sizes.width_text([8, 4]) == "8 4"
    table = _sizes.sizes_table(ROWS, {"unigram entropy": 4.5})
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert lines[0][-1] == "bits/byte"
    assert lines[2] == ["student", "2", "16", "16 32", "1,000,000", "1.00", "2.00", "2.0000"]
    assert lines[4][-1] == "-"
    assert lines[-1] == ["unigram entropy", *[""] * 6, "4.5000"]


def test_figures_of_other_texts_do_not_stand_in_one_column():
    rows = [row | {"folder": row["name"], "scores": dict(row["scores"])} for row in ROWS]
    assert _sizes.text_remarks(rows) == []
    # First in the manifest, and lower than all others.
    rows[0]["scores"] = {"bits_per_byte:easy": 0.5} | rows[0]["scores"]
    rows[1]["scores"] = {"bits_per_byte:easy": 0.5, "bits_per_byte:b": 0.25}
    table = _sizes.sizes_table(rows, {"unigram entropy": 4.5})
    cells = [line.split("|")[-2].strip() for line in table.splitlines()]
    assert cells == ["bits/byte", cells[1], "2.0000", "-", "-", "1.5000", "4.5000"]
    [remark] = _sizes.text_remarks(rows)
    assert "of held_out" in remark and "models/layers=2 has it of easy, b;" in remark
    assert [row["name"] for row in _sizes.plotted(rows)] == ["student", "ta"]

    # Without any of the held-out text, that which most have; baselines are not of it.
    del rows[0]["scores"]["bits_per_byte:held_out"], rows[3]["scores"]["bits_per_byte:held_out"]
    table = _sizes.sizes_table(rows, {"unigram entropy": 4.5})
    cells = [line.split("|")[-2].strip() for line in table.splitlines()]
    assert cells == ["bits/byte of easy", cells[1], "0.5000", "0.5000", "-", "-"]
    assert _sizes.figure_of(rows).axis == "bits/byte of easy (lower is better)"
    assert "unigram" not in table


@pytest.mark.parametrize(("rises", "better"), [(True, 2.0), (False, 1.0)])
def test_better_is_as_the_figure_says(rises, better):
    figure = _sizes.Figure("t", "", "", rises=rises)
    values = {1.0, 2.0}
    worse = (values - {better}).pop()
    assert figure.improves(better, worse) and not figure.improves(worse, better)
