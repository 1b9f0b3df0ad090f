import json
import re
import shutil

import pytest

from matta_jax import evaluate, extract, report, storage
from matta_jax.errors import UnsavedError, UserError


def test_report_gathers_table_and_plots(run, tiny, tmp_path):

    workdir = tmp_path / "run"
    shutil.copytree(run[1], workdir)
    empty = report(workdir)
    assert not empty.rows and "matta-extract" in empty.table
    for spec in ("ta", "student"):
        extract(str(workdir), [spec], workdir / "models" / spec)
        evaluate(
            model=workdir / "models" / spec,
            tasks=["bits_per_byte:held_out"],
        )
    made = report(workdir, notes={"baselines": {"unigram entropy": 4.5}, "sample": "text ``` more"})
    assert [row["name"] for row in made.rows] == ["student", "ta"]
    assert made.rows[0]["parameters"] < made.rows[1]["parameters"]
    names = {file.name for file in made.files}
    assert names == {"report.md", "report.json", "curves.png", "accuracy_vs_size.png"}
    assert all(file.stat().st_size > 100 for file in made.files)
    markdown = (workdir / "report.md").read_text()
    assert (
        "unigram entropy" in markdown
        and "text ''' more" in markdown
        and f"{made.rows[1]['parameters']:,}" in markdown
    )
    metrics = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    last = next(row for row in reversed(metrics) if "eval/student" in row)
    cells = {
        tuple(cell.strip() for cell in line.split("|")[1:-1]) for line in markdown.splitlines()
    }
    assert ("loss of the Student, nats per token", f"{last['eval/student']:.4f}") in cells
    assert ("steps", "6 of 6, of 4 x 32 tokens") in cells
    assert dict(cell for cell in cells if len(cell) == 2)["TA"].endswith(
        f"{made.rows[1]['parameters']:,} parameters"
    )
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", markdown)
    assert sorted(pictures) == ["accuracy_vs_size.png", "curves.png"]
    again = report(workdir)  # The notes of the last report stay.
    assert again.table == made.table and "text ''' more" in (workdir / "report.md").read_text()


def test_report_of_no_run_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        report(tmp_path)


def test_report_of_a_damaged_config_is_named(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json is damaged"):
        report(tmp_path)


@pytest.mark.parametrize(
    "line",
    ["{}", "5", "NaN", '{"step": 1, "student": NaN}', '{"step": 1.5}', '{"step', "[]", "null"],
)
def test_a_line_of_metrics_that_is_no_row_is_named(run, tmp_path, line):
    shutil.copyfile(run[1] / "config.json", tmp_path / "config.json")
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "student": null}\n' + line)
    with pytest.raises(UserError, match=r"metrics.jsonl is damaged in line 2 \(") as error:
        report(tmp_path)
    assert "\n" not in str(error.value)


def test_a_figure_that_was_changed_is_not_reported(run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(run[1], workdir, ignore=shutil.ignore_patterns("checkpoints"))
    score = {"task": "bits_per_byte:x", "value": 2.5, "corpus": "c0ffee", "date": "2026-01-02"}
    extract(str(run[1]), ["student"], workdir / "models" / "s", scores={"student": [score]})
    assert report(workdir).rows[0]["scores"] == {"bits_per_byte:x": 2.5}
    file = workdir / "models" / "s" / "manifest.json"
    text = file.read_text()
    for old, new in (('"value": 2.5', '"value": 1.5'), ('"parameters": ', '"parameters": 1')):
        file.write_text(text.replace(old, new))
        with pytest.raises(UserError, match="manifest.json was changed"):
            report(workdir)


def test_a_report_that_cannot_be_written_is_not_lost(run, tmp_path, monkeypatch):
    for name in ("config.json", "metrics.jsonl"):
        shutil.copyfile(run[1] / name, tmp_path / name)
    table = report(tmp_path).table

    def fill(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(storage, "replace_text", fill)
    with pytest.raises(UnsavedError, match="cannot be written .No space left on device.") as error:
        report(tmp_path)
    assert error.value.text == table
