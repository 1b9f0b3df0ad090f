"""Teachers and labels that do not fit a run are named."""

import dataclasses

import pytest

from matta_jax import config as c
from matta_jax import train
from matta_jax.errors import UserError
from matta_jax.starts import teacher as teacher_lib
from matta_jax.tokenizers import ByteTokenizer

TAUGHT = {"teacher__student_weight": 0.7, "teacher__ta_weight": 0.3}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"teacher__temperature": 1.0}, "another temperature .2.0. than teacher.temperature"),
        ({"data__seq_len": 16}, "another window length .32. than data.seq_len"),
        ({"data__eval_fraction": 0.5}, "another text"),
        ({"model__vocab_size": 300}, "another vocabulary .256. than model.vocab_size"),
    ],
)
def test_foreign_labels_are_named(tiny, labels, tmp_path, change, words):
    fields = {"teacher__labels": labels(8), "teacher__temperature": 2.0, **TAUGHT} | change
    with pytest.raises(UserError, match=words):
        train(tiny(**fields), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"teacher__student_weight": 1.0}, "teacher.student_weight=1.0 needs a Teacher"),
        ({"teacher__task_labels": "teacher"}, "teacher.task_labels='teacher' needs a Teacher"),
        ({"teacher__model": "x"}, "teacher.model='x' would teach nothing"),
        ({"teacher__model": "x", "teacher__labels": "y"}, "one alone teaches"),
        (
            {"teacher__model": "/nowhere", **TAUGHT},
            "teacher.model='/nowhere' is neither a model nor a run",
        ),
        ({"teacher__labels": "/nowhere", **TAUGHT}, "'/nowhere' holds no labels"),
    ],
)
def test_a_teacher_that_is_not_there_is_named(tiny, tmp_path, fields, words):
    with pytest.raises(UserError, match=words):
        train(tiny(**fields), tmp_path / "run")


def test_a_teacher_that_does_not_fit_is_named(tiny, run, teacher):
    opened = teacher_lib.open_teacher(str(run[1]), "teacher.model")
    assert opened.load().architecture == opened.architecture
    for change, words in {
        "model__vocab_size": (
            300,
            "a vocabulary of 256, and must have the 300 .*set model.vocab_size=256$",
        ),
        "data__seq_len": (64, "reads at most 32 tokens, fewer than data.seq_len=64"),
    }.items():
        fields = {change: words[0]} | ({"model__max_len": 64} if "seq" in change else {})
        with pytest.raises(UserError, match=words[1]):
            teacher_lib.check_teacher(opened, tiny(**fields), "teacher.model")
    other = c.override(opened.config, {"data.tokenizer": "gpt2:/nowhere"})
    with pytest.raises(UserError, match="its tokenizer cannot be compared"):
        teacher_lib.check_teacher(
            dataclasses.replace(opened, config=other), tiny(), "teacher.model"
        )


def test_tokenizers_are_compared_by_what_they_do(tmp_path):
    class Same(ByteTokenizer):
        fingerprint = "other files"

    class Upper(Same):
        def encode(self, text):
            return super().encode(text.upper())

    assert teacher_lib.same_tokenizer(ByteTokenizer(), Same())
    assert not teacher_lib.same_tokenizer(ByteTokenizer(), Upper())
