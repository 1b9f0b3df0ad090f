import dataclasses
import errno
import json
import os
import shutil
from unittest import mock

import pytest

from matta_jax import compare, evaluate, evaluation, extract, packages
from matta_jax.config import MeshConfig
from matta_jax.errors import UnsavedError, UserError
from matta_jax.evaluation import _evaluate


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


@pytest.mark.slow
def test_models_side_by_side_are_paired_and_in_place_is_as_extracted(run, models, files, tmp_path):
    tasks = [f"lambada:{files}/lambada.jsonl", "bits_per_byte:held_out", "perplexity:held_out"]
    apart = [evaluate(model=model, tasks=tasks) for model in models]
    together = compare(models=models, tasks=tasks, output=tmp_path / "both.json")
    in_place = compare(checkpoint=str(run[1]), sub_models=["student", "ta"], tasks=tasks)
    for i in range(2):
        assert apart[i].scores == together.evaluations[i].scores == in_place.evaluations[i].scores
    assert len(together.paired) == 1 and 0 <= together.paired[0].p_value <= 1
    saved = json.loads((tmp_path / "both.json").read_text())
    assert [model["spec"] for model in saved["models"]] == ["student", "ta"]
    assert saved["baselines"][tasks[0]] == together.baselines[tasks[0]]
    assert together.baselines[tasks[0]]["most frequent name"] == 1 / 5  # Tom.
    assert "most frequent name" in together.table and "against student" in together.table


def test_a_figure_in_another_type_differs_and_says_so(run, models, tmp_path):
    folder = shutil.copytree(models[1], tmp_path / "ta")
    arguments = {"tasks": "bits_per_byte:held_out", "compute_dtype": "bfloat16"}
    result = compare(models=folder, **arguments)
    in_place = evaluate(checkpoint=str(run[1]), sub_model="ta", **arguments)
    exact = evaluate(model=models[1], tasks="bits_per_byte:held_out")
    [rounded] = result.evaluations
    assert rounded.compute_dtype == "bfloat16" and exact.compute_dtype == "float32"
    assert rounded.scores == in_place.scores != exact.scores
    assert rounded.scores == pytest.approx(exact.scores, rel=1e-2)
    assert result.table.endswith("Computed in bfloat16.")

    # Beside the figure in float32, where there is one, and in place of its own kind.
    evaluate(model=folder, tasks="bits_per_byte:held_out")
    evaluate(model=folder, **arguments)
    kept, score = packages.open_model(folder).manifest["scores"]
    assert "compute_dtype" not in kept and score["compute_dtype"] == "bfloat16"
    card = (folder / "README.md").read_text()
    assert f"| bits_per_byte:held_out in bfloat16 | {score['value']:.4f} |" in card
    with pytest.raises(UserError, match="compute_dtype='half' must be one of float32, bfloat16"):
        evaluate(model=folder, tasks="bits_per_byte:held_out", compute_dtype="half")


@pytest.mark.parametrize("task", ["lambada", "lambada:", "perplexity"])
def test_a_task_without_a_file_is_told_so(models, task):
    with pytest.raises(UserError, match=f"tasks='{task}' names no file; write {task.rstrip(':')}:"):
        evaluate(model=models[0], tasks=[task])


def test_nothing_is_scored_before_all_is_in_order(models, files, tmp_path):
    """Neither a bad task of a later model, nor an output that cannot be, comes after hours of
    scoring.
    """
    manifest = models[0] / "manifest.json"
    before = manifest.read_bytes()
    (tmp_path / "file").touch()
    for arguments, words in (
        ({"tasks": [f"lambada:{files}/lambada.jsonl", "lambada:/no.jsonl"]}, "does not exist"),
        (
            {"tasks": [f"lambada:{files}/lambada.jsonl"], "output": tmp_path / "file" / "a.json"},
            "cannot be written",
        ),
        ({"tasks": [f"lambada:{files}/lambada.jsonl"] * 2}, "tasks='lambada:.*' is named twice"),
    ):
        with pytest.raises(UserError, match=words):
            evaluate(model=models[0], **arguments)
    with pytest.raises(UserError, match="model='.*' is named twice"):
        evaluation.compare(models=[models[0], models[0]], tasks=["perplexity:held_out"])
    assert manifest.read_bytes() == before


def test_models_of_several_runs_go_by_their_folders_and_tokens_do_not_compare(models):
    student = packages.load_model(models[0])
    ta = packages.load_model(models[1])
    data = dataclasses.replace(ta.config.data, tokenizer="gpt2:somewhere")
    foreign = dataclasses.replace(ta, config=dataclasses.replace(ta.config, data=data))
    assert _evaluate._names([student, ta], ["a", "b"]) == [student.spec, ta.spec]
    assert _evaluate._names([student, foreign], ["a", "b"]) == ["a", "b"]
    scores = [mock.Mock(scores={"perplexity:x": 1.0, "bits_per_byte:x": 1.0})]
    assert "(byte, gpt2:somewhere): figures of a token" in _evaluate._note_on_tokenizers(
        [student, foreign], scores
    )
    assert _evaluate._note_on_tokenizers([student, ta], scores) == ""


def test_scores_that_cannot_be_written_are_told(run, tmp_path, monkeypatch):
    checkpoint = {"checkpoint": str(run[1]), "sub_model": "student"}
    with pytest.raises(UserError, match="is a folder; name a JSON file"):
        evaluate(**checkpoint, tasks=["perplexity:held_out"], output=tmp_path)

    def full(path, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr("matta_jax.storage.replace_text", full)
    with pytest.raises(UnsavedError, match="cannot be written .No space left") as error:
        evaluate(**checkpoint, tasks=["perplexity:held_out"], output=tmp_path / "a.json")
    assert "| perplexity:held_out | student" in error.value.text


def test_a_single_name_is_a_list_of_one(run, models):
    listed = evaluation.compare(models=[models[0]], tasks=["bits_per_byte:held_out"])
    single = evaluation.compare(models=str(models[0]), tasks="bits_per_byte:held_out")
    in_place = evaluation.compare(
        checkpoint=str(run[1]), sub_models="student", tasks="bits_per_byte:held_out"
    )
    assert single.evaluations == listed.evaluations
    assert [e.spec for e in in_place.evaluations] == ["student"]


@pytest.fixture(scope="module")
def mixed(even_run, tmp_path_factory):
    """The folder of a mix of three widths."""
    return extract(even_run, ["d_ff=16,48,32"], tmp_path_factory.mktemp("mixed") / "model")[0].path


@pytest.fixture(scope="module")
def even_scores(even_run, mixed, files):
    """`even_scores(mesh)`: of the Student and the TA in place, and of the mix."""
    tasks = ["bits_per_byte:held_out", f"lambada:{files}/lambada.jsonl"]
    made = {}

    def scores(mesh):
        if mesh not in made:
            in_place = compare(
                checkpoint=even_run, sub_models=["student", "ta"], tasks=tasks, mesh=mesh
            )
            alone = evaluate(model=mixed, tasks=tasks, mesh=mesh)
            made[mesh] = [each.scores for each in (*in_place.evaluations, alone)]
        return made[mesh]

    return scores


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes",
    [(2, 1, 1), (1, 2, 2), (1, 1, 4)],
)
def test_scores_of_a_mesh_are_those_of_a_device(even_scores, sizes):
    pairs = zip(even_scores(None), even_scores(MeshConfig(*sizes)), strict=True)
    for expected, scores in pairs:
        assert scores == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_images_are_scored_on_a_mesh(vit_model):
    expected, shared = (
        evaluate(model=vit_model, tasks=["accuracy:held_out"], mesh=mesh).scores
        for mesh in (None, MeshConfig(data=2, fsdp=2))
    )
    assert shared == pytest.approx(expected, rel=1e-5)
