import json
import math
import re

import jax
import numpy as np
import pytest

from matta_jax import config as c
from matta_jax import evaluate, extract, packages, report
from matta_jax.data import Corpus, corpus_windows
from matta_jax.errors import UserError
from matta_jax.evaluation._curves import plot_curves
from matta_jax.reporting import new_figure
from matta_jax.selection import scoring
from matta_jax.tokenizers import ByteTokenizer


@pytest.fixture(scope="module")
def student(run, tmp_path_factory):
    return extract(str(run[1]), ["student"], tmp_path_factory.mktemp("student") / "model")[0].path


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("held_out")
    (folder / "a.txt").write_text("the lazy dog jumps; héllo " * 9)
    (folder / "b.txt").write_text("quick liquor")
    return folder


def test_bits_per_byte_is_that_of_a_plain_loop(student, text):
    """Token by token over the stream, in numpy, with the context that each window gives."""
    model = packages.load_model(student)
    stream = [0]
    for name in ("a.txt", "b.txt"):
        stream += [*list((text / name).read_bytes()), 0]
    nats, seq_len = 0.0, 32
    logits = jax.jit(model.logits)
    for start in range(0, len(stream) - 1, seq_len):
        inputs = stream[start : start + seq_len]
        padded = np.zeros((1, seq_len), np.int32)
        padded[0, : len(inputs)] = inputs
        z = np.asarray(logits(model.params, padded), np.float64)
        for i, target in enumerate(stream[start + 1 : start + seq_len + 1]):
            if target:
                nats += math.log(np.exp(z[i] - z[i].max()).sum()) + z[i].max() - z[i, target]
    num_bytes = sum(len((text / name).read_bytes()) for name in ("a.txt", "b.txt"))
    tasks = [f"bits_per_byte:{text}/*.txt", f"perplexity:{text}/*.txt"]
    result = evaluate(model=student, tasks=tasks)
    assert result.scores[tasks[0]] == pytest.approx(nats / math.log(2) / num_bytes, rel=1e-5)
    assert result.scores[tasks[1]] == pytest.approx(math.exp(nats / num_bytes), rel=1e-5)


def test_batch_size_changes_nothing(student, text, cache):
    model = packages.load_model(student)
    windows = corpus_windows(
        Corpus(f"text:{text}/*.txt"), ByteTokenizer(), seq_len=32, cache_dir=cache
    )
    a, b = (scoring.text_loss(model, windows, batch_size=size) for size in (1, 5))
    assert a.nats == pytest.approx(b.nats, rel=1e-6) and a.num_tokens == b.num_tokens == a.num_bytes


def test_extracted_and_in_place_score_the_same(run, student, tmp_path):
    a = evaluate(
        model=student, tasks=["bits_per_byte:held_out"], output=tmp_path / "deep" / "scores.json"
    )
    b = evaluate(checkpoint=str(run[1]), sub_model="student", tasks=["bits_per_byte:held_out"])
    assert a.scores == b.scores and a.counts == b.counts
    assert json.loads((tmp_path / "deep" / "scores.json").read_text())["scores"] == a.scores


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"tasks": ["bits_per_byte:held_out"]}, "either model .* or checkpoint"),
        ({"model": "x", "checkpoint": "y", "tasks": ["bits_per_byte:held_out"]}, "not both"),
        ({"checkpoint": "y", "tasks": ["bits_per_byte:held_out"]}, "sub_model is missing"),
        ({"model": "x", "tasks": []}, "tasks is missing"),
        ({"model": "x", "tasks": ["bits_per_bite:held_out"]}, "did you mean 'bits_per_byte'"),
        ({"model": "x", "tasks": ["perplexity"]}, "perplexity:GLOB"),
        ({"model": "/nowhere", "tasks": ["perplexity:held_out"]}, "not an extracted model"),
    ],
)
def test_mistakes_end_in_one_line(arguments, words):
    with pytest.raises(UserError, match=words):
        evaluate(**arguments)


def test_report_gathers_table_and_plots(run, tiny, tmp_path):
    import shutil

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


def test_a_panel_holds_one_kind_and_what_the_run_has(tmp_path):
    config = c.from_dict(
        {"nest": {"mix_per_step": 2}, "objective": {"divergence": "reverse_kl", "temperature": 2.0}}
    )
    metrics = [
        {
            "step": step,
            "student": 2.0,
            "ta": 1.9,
            "mix_0": 1.95,
            "gap": 0.1,
            "grad_norm": 1.0,
            "learning_rate": 1e-3,
        }
        for step in (1, 2)
    ]
    figure = new_figure((4, 4))
    plot_curves(
        tmp_path / "curves.png",
        figure,
        config,
        [*metrics, {"step": 2, "eval/student": 2.1, "distill": 0.3}],
    )
    drawn = [
        [line.get_label() for line in axes.lines if line.get_xdata()[0] > 0] for axes in figure.axes
    ]
    assert drawn[0] == [
        "Student, training",
        "TA, training",
        "random mix 1, training",
        "Student, held out",
    ]
    assert drawn[1] == ["loss of the Student minus loss of the TA", "T² KL(Student ‖ TA), T = 2"]
    assert [axes.get_ylabel() for axes in figure.axes][2:] == ["gradient norm", "learning rate"]
