"""LAMBADA on small files, against plain loops over the model's own logits."""

import json
import math

import numpy as np
import pytest

from matta_jax import compare, evaluate, packages
from matta_jax.errors import UserError
from matta_jax.evaluation import _evaluate, _lambada
from matta_jax.tokenizers import ByteTokenizer


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


class Letters(ByteTokenizer):
    """Has no token for what is not ASCII."""

    def _ids_of(self, text):
        return np.frombuffer(text.encode("ascii", "ignore"), np.uint8)


class Strict(ByteTokenizer):
    """Takes nothing but ASCII, as a vocabulary of words without a token for the unknown."""

    def _ids_of(self, text):
        if not text.isascii():
            raise UserError("cannot encode a text")
        return super()._ids_of(text)


@pytest.mark.parametrize(
    ("kind", "word"),
    [(Letters, "東京"), (Letters, "caf東"), (Letters, "\0"), (Strict, "東京"), (Strict, "caf東")],
)
def test_a_word_without_tokens_is_named_and_left_out(models, tmp_path, caplog, word, kind):
    lines = [{"text": "the old dog lives here"}, {"text": f"the dog lives in {word}"}]
    (tmp_path / "l.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "one.jsonl").write_text(json.dumps(lines[0]) + "\n")
    outcomes = []
    for name in ("l.jsonl", "one.jsonl"):
        with caplog.at_level("WARNING", logger="absl"):
            task = _lambada.Lambada(str(tmp_path / name), kind())
        outcomes.append(task.run(packages.load_model(models[0])))
    assert [outcome.left_out for outcome in outcomes] == [1, 0]
    assert [outcome.count for outcome in outcomes] == [1, 1]
    assert outcomes[0].scores[0].value == outcomes[1].scores[0].value
    assert list(outcomes[0].numbers) == [1]


def test_a_file_of_which_nothing_can_be_scored_ends_in_one_line(tmp_path):
    (tmp_path / "l.jsonl").write_text(json.dumps({"text": "lives in 東京"}))
    with pytest.raises(UserError, match="no example can be scored: line 1 .the word '東京' has no"):
        _lambada.Lambada(str(tmp_path / "l.jsonl"), Letters())


def test_the_plain_form_is_told_what_a_line_is(tmp_path):
    (tmp_path / "l.txt").write_text("the old dog lives here\n")
    with pytest.raises(UserError, match=r'line 1 is not JSON .* it must be {"text": "..."} a line'):
        _lambada.Lambada(str(tmp_path / "l.txt"), Letters())


def test_what_is_left_out_is_in_the_table_and_the_file(models, tmp_path, monkeypatch):
    monkeypatch.setattr(_evaluate, "_text_tokenizer", lambda config, task: Letters())
    lines = [{"text": "the old dog lives here"}, {"text": "the dog lives in 東京"}]
    (tmp_path / "l.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = f"lambada:{tmp_path}/l.jsonl"
    result = compare(models=models[0], tasks=task, output=tmp_path / "o.json")
    assert result.evaluations[0].left_out == {task: 1}
    assert "1 of 2 examples left out" in result.table
    assert json.loads((tmp_path / "o.json").read_text())["left_out"] == {task: 1}
