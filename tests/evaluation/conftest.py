"""Models of the tiny run, small files of LAMBADA and SAT Math, and a plain loop over a model's own
logits.
"""

import json
import math

import jax
import numpy as np
import pytest

from matta_jax import extract

PASSAGES = [
    "the quick brown fox jumps over the lazy dog",
    "pack my box with five dozen\nliquor jugs",
    "a bc",
    "Tom met, as ever, Tom and then Tom",
    "long " * 20 + "dog",
]
QUESTIONS = [
    {
        "passage": "",
        "question": "what is 1+1?",
        "options": ["(A)2", "(B)three", "(C)4 or so"],
        "label": "A",
    },
    {"passage": None, "question": "x?", "options": ["(A)the", "(B)fox"], "label": "B"},
    {
        "passage": "some text. ",
        "question": "y?",
        "options": ["(A)dog", "(B)q", "(C)over"],
        "label": "A",
    },
]


@pytest.fixture(scope="session")
def passages():
    return PASSAGES


@pytest.fixture(scope="session")
def questions():
    return QUESTIONS


@pytest.fixture(scope="module")
def models(run, tmp_path_factory):
    """Folders of the run's Student and TA."""
    extracted = extract(str(run[1]), ["student", "ta"], tmp_path_factory.mktemp("models"))
    return [model.path for model in extracted]


@pytest.fixture(scope="module")
def student(run, tmp_path_factory):
    return extract(str(run[1]), ["student"], tmp_path_factory.mktemp("student") / "model")[0].path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with `lambada.jsonl` and `sat.jsonl`."""
    folder = tmp_path_factory.mktemp("tasks")
    lines = [json.dumps({"text": text}) + "\n" for text in PASSAGES]
    (folder / "lambada.jsonl").write_text("".join(lines))
    lines = [json.dumps(question) + "\n\n" for question in QUESTIONS]
    (folder / "sat.jsonl").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A folder of two texts."""
    folder = tmp_path_factory.mktemp("held_out")
    (folder / "a.txt").write_text("the lazy dog jumps; héllo " * 9)
    (folder / "b.txt").write_text("quick liquor")
    return folder


@pytest.fixture(scope="session")
def split():
    """`split(text)`: the context, and the last word with the space before it."""

    def split_passage(text):
        context, word = text.rsplit(" ", 1)
        return context, " " + word

    return split_passage


@pytest.fixture(scope="session")
def plain_score():
    """`plain_score(model, context, target)`, of bytes, one at a time: the log-probability of a
    target, and which of its tokens are the most likely.
    """

    def score(model, context, target):
        log_prob = 0.0
        is_top = []
        logits = jax.jit(model.logits)
        for i in range(len(target)):
            window = [*context, *target][-33:]
            seen = window[: len(window) - len(target) + i]
            padded = np.zeros((1, 32), np.int32)
            padded[0, : len(seen)] = seen
            z = np.asarray(logits(model.params, padded), np.float64)[len(seen) - 1]
            log_prob += z[target[i]] - z.max() - math.log(np.exp(z - z.max()).sum())
            is_top.append(int(np.argmax(z)) == target[i])
        return log_prob, is_top

    return score
