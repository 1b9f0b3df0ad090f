import json
import re
import shutil
import sys

import pytest

from matta_jax import evaluate, extract, packages, report, storage
from matta_jax.checkpoints import read_meta, weights_fingerprint
from matta_jax.errors import UnsavedError, UserError
from matta_jax.evaluation import _run_facts
from matta_jax.evaluation._sizes import plotted
from matta_jax.packages._manifest import sealed


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
    timed = [row for row in metrics if "goodput" in row][-1]
    goodput = dict(cell for cell in cells if len(cell) == 2)["goodput"]
    assert goodput.startswith(f"{timed['goodput']:.1%} of 0:0") and "redone" not in goodput
    total = sum(value for name, value in timed.items() if name.startswith("seconds/"))
    assert f", start {timed['seconds/start'] / total:.1%}" in goodput.replace("; ", ", ")
    assert dict(cell for cell in cells if len(cell) == 2)["TA"].endswith(
        f"{made.rows[1]['parameters']:,} parameters, 0.036 tokens for each"
    )
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", markdown)
    assert sorted(pictures) == ["accuracy_vs_size.png", "curves.png"]
    again = report(workdir)  # The notes of the last report stay.
    assert again.table == made.table and "text ''' more" in (workdir / "report.md").read_text()


def test_report_of_no_run_is_named(tmp_path):
    with pytest.raises(UserError, match="holds no run"):
        report(tmp_path)


@pytest.mark.parametrize("text", ["{", "{}", "5", "[]", "null", '{"model": {}, "data": {}}'])
def test_report_of_a_damaged_config_is_named(tmp_path, text):
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "config.json").write_text(text)
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
    rounded = score | {"task": "bits_per_byte:y", "compute_dtype": "bfloat16"}
    packages.record_scores(workdir / "models" / "s", [rounded])
    assert report(workdir).rows[0]["scores"] == {
        "bits_per_byte:x": 2.5,
        "bits_per_byte:y in bfloat16": 2.5,
    }
    file = workdir / "models" / "s" / "manifest.json"
    text = file.read_text()
    for old, new in (('"value": 2.5', '"value": 1.5'), ('"parameters": ', '"parameters": 1')):
        file.write_text(text.replace(old, new))
        with pytest.raises(UserError, match="manifest.json was changed"):
            report(workdir)


def test_metrics_that_end_before_the_newest_checkpoint_are_told(run, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(run[1], workdir)
    assert not any("metrics.jsonl" in remark for remark in report(workdir).remarks)
    file = workdir / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    for kept, last in (("", 0), ("".join(line for line in lines if '"step": 5' in line), 5)):
        file.write_text(kept)
        [remark] = [each for each in report(workdir).remarks if "metrics.jsonl" in each]
        assert f"end at step {last}, and the newest checkpoint is of step 6" in remark


PARENTS = {
    "newest": ({}, ""),
    "older": ({"step": 3}, "step 3"),
    "gone": ({"step": 2}, "step 2, which is gone"),
    "trained anew": ({"fingerprint": "c0ffee"}, "another run"),
    "longer": ({"step": 9}, "another run"),
    "imported": (None, "another run"),
}


@pytest.fixture(scope="module")
def descended(run, tmp_path_factory):
    """A copy of the run with a scored model of each of PARENTS, by their manifests."""
    workdir = tmp_path_factory.mktemp("descended") / "run"
    shutil.copytree(run[1], workdir)
    score = {"task": "bits_per_byte:x", "value": 2.5, "corpus": "c0ffee", "date": "2026-01-02"}
    [model] = extract(
        str(run[1]), ["student"], workdir / "models" / "newest", scores={"student": [score]}
    )
    older = weights_fingerprint(read_meta(workdir / "checkpoints" / "3"))
    for name, (changes, _) in PARENTS.items():
        folder = workdir / "models" / name
        if changes == {}:
            continue
        shutil.copytree(model.path, folder)
        manifest = json.loads((folder / "manifest.json").read_text())
        if changes is None:
            manifest["parent"] = {"hf": "a folder"}
        else:
            fingerprint = {"fingerprint": older} if name == "older" else {}
            manifest["parent"] |= fingerprint | changes
        (folder / "manifest.json").write_text(json.dumps(sealed(manifest)))
    return workdir


def test_models_of_other_weights_are_marked_and_not_drawn(descended):
    made = report(descended)
    marks = {row["folder"]: row["stale"] for row in made.rows}
    assert marks == {name: mark for name, (_, mark) in PARENTS.items()}
    remark, too_little = made.remarks
    assert too_little.startswith("The run has read 0.036 tokens for each parameter")
    for name, (_, mark) in PARENTS.items():
        assert (f"models/{name} is of {mark}" in remark) == bool(mark)
        assert not mark or f"student ({mark})" in made.table
    assert remark in (descended / "report.md").read_text()
    assert [row["folder"] for row in plotted(made.rows)] == ["newest"]
    assert "accuracy_vs_size.png" in {file.name for file in made.files}


def test_plots_that_are_not_drawn_are_named_with_the_reason(descended, tmp_path, monkeypatch):
    for name in ("config.json", "metrics.jsonl"):
        shutil.copyfile(descended / name, tmp_path / name)
    words = "Not drawn: accuracy_vs_size.png (no model of the newest checkpoint has a score of"
    assert report(tmp_path).remarks[-1].startswith(words)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    reason = "(no Matplotlib: pip install 'matta_jax[plots]')"
    line = f"Not drawn: curves.png {reason}, accuracy_vs_size.png {reason}"
    assert report(descended).remarks[-1] == line


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


def test_goodput_is_told_since_the_first_line_that_has_it_and_damage_is_named():
    told = {"step": 900, "goodput": 0.75, "seconds/step": 90.0, "seconds/start": 30.0}
    old = {"step": 900, "loss": 1.0}
    line = _run_facts._goodput([old, told])
    assert line == (
        "75.0% of 0:02:00 in training steps since step 900, before which lines do not tell; "
        "start 25.0%"
    )
    assert "since" not in _run_facts._goodput([told | {"step": 0}, old])
    for damage in ({"seconds/start": -500.0}, {"seconds/start": 1e300}):
        with pytest.raises(UserError, match=r"metrics.jsonl is damaged: .* remove that line"):
            _run_facts._goodput([told | damage])
