"""LAMBADA and SAT Math on small files, against plain loops over the model's own logits."""

import dataclasses
import json
import math
from unittest import mock

import jax
import numpy as np
import pytest

from matta_jax import compare, evaluate, evaluation, extract, packages
from matta_jax.errors import UserError
from matta_jax.evaluation import _evaluate, _likelihood, _tasks
from matta_jax.tokenizers import ByteTokenizer

PASSAGES = [
    "the quick brown fox jumps over the lazy dog",
    "pack my box with five dozen\nliquor jugs",
    "a bc",
]
PASSAGES += ["Tom met, as ever, Tom and then Tom", "long " * 20 + "dog"]
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


@pytest.fixture(scope="module")
def models(run, tmp_path_factory):
    return [
        one.path
        for one in extract(str(run[1]), ["student", "ta"], tmp_path_factory.mktemp("models"))
    ]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "lambada.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in PASSAGES)
    )
    (folder / "sat.jsonl").write_text(
        "".join(json.dumps(question) + "\n\n" for question in QUESTIONS)
    )
    return folder


def plain_score(model, context, target):
    """Of bytes, one at a time: the log-probability of a target, and which of its tokens are the
    most likely.
    """
    log_prob, top, logits = 0.0, [], jax.jit(model.logits)
    for i in range(len(target)):
        whole = [*context, *target][-33:]
        seen = whole[: len(whole) - len(target) + i]
        padded = np.zeros((1, 32), np.int32)
        padded[0, : len(seen)] = seen
        z = np.asarray(logits(model.params, padded), np.float64)[len(seen) - 1]
        log_prob += z[target[i]] - z.max() - math.log(np.exp(z - z.max()).sum())
        top.append(int(np.argmax(z)) == target[i])
    return log_prob, top


def test_lambada_is_that_of_a_plain_loop(models, files):
    task = f"lambada:{files}/lambada.jsonl"
    result = evaluate(model=models[0], tasks=[task])
    model = packages.load_model(models[0])
    found = [plain_score(model, *(part.encode() for part in split(text))) for text in PASSAGES]
    assert result.scores[task] == np.mean([all(top) for _, top in found])
    assert result.scores[f"lambada_last_token:{files}/lambada.jsonl"] == np.mean(
        [top[-1] for _, top in found]
    )
    perplexity = result.scores[f"lambada_perplexity:{files}/lambada.jsonl"]
    assert perplexity == pytest.approx(math.exp(-np.mean([nats for nats, _ in found])), rel=1e-4)
    assert result.truncated == {task: sum(len(text.encode()) > 33 for text in PASSAGES)}
    low, high = result.intervals[task]
    assert low <= result.scores[task] <= high
    scores = {score["task"]: score for score in packages.open_model(models[0]).manifest["scores"]}
    assert scores[task]["value"] == result.scores[task] and scores[task]["interval"] == [low, high]


def split(text):
    context, word = text.rsplit(" ", 1)
    return context, " " + word


def test_the_context_of_a_word_that_follows_a_line_break_keeps_it():
    request = _likelihood.encode_request(ByteTokenizer(), "five dozen\n", " jugs")
    assert bytes(request.context.astype(np.uint8)) == b"five dozen"
    assert bytes(request.target.astype(np.uint8)) == b"\n jugs"
    assert list(_likelihood.encode_request(ByteTokenizer(), "", "x").context) == [0]


def test_sat_math_scores_options_by_sum_and_by_character(models, files):
    task = f"sat_math:{files}/sat.jsonl"
    result = evaluate(model=models[1], tasks=[task])
    model, right, norm = packages.load_model(models[1]), [], []
    for one in QUESTIONS:
        last = "ABCDEFG"[len(one["options"]) - 1]
        prompt = (
            f"{one['passage'] or ''}Q: {one['question']} Answer Choices: "
            f"{' '.join(one['options'])}\n"
            f"A: Among A through {last}, the answer is"
        )
        sums = [
            plain_score(model, prompt.encode(), f" {option}".encode())[0]
            for option in one["options"]
        ]
        label = "ABC".index(one["label"])
        right.append(int(np.argmax(sums)) == label)
        norm.append(
            int(np.argmax(np.array(sums) / [len(option) for option in one["options"]])) == label
        )
    assert result.scores[task] == np.mean(right)
    assert result.scores[f"sat_math_norm:{files}/sat.jsonl"] == np.mean(norm)
    assert result.truncated[task] == 3


def test_models_side_by_side_are_paired_and_in_place_is_as_extracted(run, models, files, tmp_path):
    tasks = [f"lambada:{files}/lambada.jsonl", "bits_per_byte:held_out", "perplexity:held_out"]
    apart = [evaluate(model=model, tasks=tasks) for model in models]
    together = compare(models=models, tasks=tasks, output=tmp_path / "both.json")
    in_place = compare(checkpoint=str(run[1]), sub_models=["student", "ta"], tasks=tasks)
    for i in range(2):
        assert apart[i].scores == together.evaluations[i].scores == in_place.evaluations[i].scores
    assert len(together.paired) == 1 and 0 <= together.paired[0].p_value <= 1
    saved = json.loads((tmp_path / "both.json").read_text())
    assert [one["spec"] for one in saved["models"]] == ["student", "ta"]
    assert saved["baselines"][tasks[0]] == together.baselines[tasks[0]]
    assert together.baselines[tasks[0]]["most frequent name"] == 1 / 5  # Tom.
    assert "most frequent name" in together.table and "against student" in together.table


def test_paired_test_is_mcnemars():
    a, b = np.array([1, 1, 1, 1, 1, 0, 0, 1], bool), np.array([1, 0, 0, 0, 0, 0, 0, 0], bool)
    pair = _tasks.paired_test("t", ("a", "b"), (a, b))
    assert (pair.only_a, pair.only_b) == (5, 0) and pair.p_value == pytest.approx(2 * 0.5**5)
    assert _tasks.paired_test("t", ("a", "a"), (a, a)).p_value == 1.0


@pytest.mark.parametrize(
    ("task", "lines", "words"),
    [
        ("lambada", "", "holds no example"),
        ("lambada", "\n \n", "holds no example"),
        ("lambada", '{"txt": "a b"}', "line 1 has no text field 'text' .it has: txt"),
        ("lambada", '{"text": 3}', "line 1: text=3 must be a text, not int"),
        ("lambada", '{"text": "a \\ud800 b"}', r"line 1 holds '\\ud800', half a character"),
        ("lambada", "[" * 100_000, "line 1 is not JSON"),
        ("lambada", '{"text": ' + "1" * 5000 + "}", "line 1 is not JSON .*4300 digits"),
        (
            "lambada",
            '{"text": "a b"}\n{"text": "word"}',
            "line 2 must be words, with a space before the last",
        ),
        ("lambada", "[1]", "line 1 is list, and must be an object"),
        ("lambada", '{"text": ', "line 1 is not JSON"),
        ("sat_math", "", "holds no question"),
        ("sat_math", '{"question": "q", "label": "A"}', "options=None must be a list"),
        (
            "sat_math",
            '{"question": "q", "options": [], "label": "A"}',
            r"options=\[\] must be a list",
        ),
        ("sat_math", '{"questio": "q"}', "no text field 'question'"),
        ("sat_math", '{"question": "q", "passage": 5}', "passage=5 must be a text"),
        (
            "sat_math",
            '{"question": "q", "options": ["(A)1", "2"], "label": "A"}',
            r"option '2' must begin with \(B\)",
        ),
        (
            "sat_math",
            '{"question": "q", "options": ["(A)1", "(B)2"], "label": "C"}',
            "label='C' must be one of A, B",
        ),
    ],
)
def test_bad_files_end_in_one_line(models, tmp_path, task, lines, words):
    (tmp_path / "bad.jsonl").write_text(lines)
    with pytest.raises(UserError, match=words):
        evaluate(model=models[0], tasks=[f"{task}:{tmp_path}/bad.jsonl"])


def test_a_missing_file_is_named(models):
    with pytest.raises(UserError, match="tasks='lambada:/no.jsonl': /no.jsonl does not exist"):
        evaluate(model=models[0], tasks=["lambada:/no.jsonl"])


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
    one, other = (packages.load_model(model) for model in models[:2])
    data = dataclasses.replace(other.config.data, tokenizer="gpt2:somewhere")
    foreign = dataclasses.replace(other, config=dataclasses.replace(other.config, data=data))
    assert _evaluate._names([one, other], ["a", "b"]) == [one.spec, other.spec]
    assert _evaluate._names([one, foreign], ["a", "b"]) == ["a", "b"]
    scores = [mock.Mock(scores={"perplexity:x": 1.0, "bits_per_byte:x": 1.0})]
    assert "(byte, gpt2:somewhere): figures of a token" in _evaluate._note_on_tokenizers(
        [one, foreign], scores
    )
    assert _evaluate._note_on_tokenizers([one, other], scores) == ""


def test_buckets_have_room_and_are_few():
    assert [_likelihood._bucket(n, 100) for n in (1, 16, 17, 25, 33, 49, 65, 97, 100)] == [
        16, 16, 24, 32, 48, 64, 96, 100, 100,
    ]  # fmt: skip


def test_batches_change_nothing(models, files):
    model = packages.load_model(models[0])
    requests = [_likelihood.encode_request(ByteTokenizer(), *split(text)) for text in PASSAGES]
    a, b = (evaluation.likelihoods(model, requests, batch_size=size) for size in (1, 4))
    for one, other in zip(a, b, strict=True):
        assert one.log_prob == pytest.approx(other.log_prob, rel=1e-5) and list(one.is_top) == list(
            other.is_top
        )
