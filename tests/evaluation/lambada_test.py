"""LAMBADA on small files, against plain loops over the model's own logits."""

import math

import numpy as np
import pytest

from matta_jax import evaluate, packages
from matta_jax.errors import UserError


def test_lambada_is_that_of_a_plain_loop(models, files, passages, split, plain_score):
    task = f"lambada:{files}/lambada.jsonl"
    result = evaluate(model=models[0], tasks=[task])
    model = packages.load_model(models[0])
    plain = [plain_score(model, *(part.encode() for part in split(text))) for text in passages]
    assert result.scores[task] == np.mean([all(is_top) for _, is_top in plain])
    assert result.scores[f"lambada_last_token:{files}/lambada.jsonl"] == np.mean(
        [is_top[-1] for _, is_top in plain]
    )
    perplexity = result.scores[f"lambada_perplexity:{files}/lambada.jsonl"]
    assert perplexity == pytest.approx(math.exp(-np.mean([nats for nats, _ in plain])), rel=1e-4)
    assert result.truncated == {task: sum(len(text.encode()) > 33 for text in passages)}
    low, high = result.intervals[task]
    assert low <= result.scores[task] <= high
    scores = {score["task"]: score for score in packages.open_model(models[0]).manifest["scores"]}
    assert scores[task]["value"] == result.scores[task] and scores[task]["interval"] == [low, high]


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("", "holds no example"),
        ("\n \n", "holds no example"),
        ('{"txt": "a b"}', "line 1 has no text field 'text' .it has: txt"),
        ('{"text": 3}', "line 1: text=3 must be a text, not int"),
        ('{"text": "a \\ud800 b"}', r"line 1 holds '\\ud800', half a character"),
        ("[" * 100_000, "line 1 is not JSON"),
        ('{"text": ' + "1" * 5000 + "}", "line 1 is not JSON .*4300 digits"),
        (
            '{"text": "a b"}\n{"text": "word"}',
            "line 2 must be words, with a space before the last",
        ),
        ("[1]", "line 1 is list, and must be an object"),
        ('{"text": ', "line 1 is not JSON"),
    ],
)
def test_bad_files_end_in_one_line(models, tmp_path, lines, words):
    (tmp_path / "bad.jsonl").write_text(lines)
    with pytest.raises(UserError, match=words):
        evaluate(model=models[0], tasks=[f"lambada:{tmp_path}/bad.jsonl"])


def test_a_missing_file_is_named(models):
    with pytest.raises(UserError, match="tasks='lambada:/no.jsonl': /no.jsonl does not exist"):
        evaluate(model=models[0], tasks=["lambada:/no.jsonl"])
