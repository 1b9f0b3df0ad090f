"""SAT Math on small files, against plain loops over the model's own logits."""

import json

import numpy as np
import pytest

from matta_jax import evaluate, packages
from matta_jax.errors import UserError
from matta_jax.evaluation import _sat_math
from matta_jax.tokenizers import ByteTokenizer


def test_sat_math_scores_options_by_sum_and_by_character(models, files, questions, plain_score):
    task = f"sat_math:{files}/sat.jsonl"
    result = evaluate(model=models[1], tasks=[task])
    model = packages.load_model(models[1])
    right = []
    right_norm = []
    for question in questions:
        options = question["options"]
        prompt = (
            f"{question['passage'] or ''}Q: {question['question']} Answer Choices: "
            f"{' '.join(options)}\n"
            f"A: Among A through {'ABCDEFG'[len(options) - 1]}, the answer is"
        )
        sums = []
        for option in options:
            log_prob, _ = plain_score(model, prompt.encode(), f" {option}".encode())
            sums.append(log_prob)
        means = np.array(sums) / [len(option) for option in options]
        label = "ABC".index(question["label"])
        right.append(int(np.argmax(sums)) == label)
        right_norm.append(int(np.argmax(means)) == label)
    assert result.scores[task] == np.mean(right)
    assert result.scores[f"sat_math_norm:{files}/sat.jsonl"] == np.mean(right_norm)
    assert result.truncated[task] == 3


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("", "holds no question"),
        ('{"question": "q", "label": "A"}', "options=None must be a list"),
        (
            '{"question": "q", "options": [], "label": "A"}',
            r"options=\[\] must be a list",
        ),
        ('{"questio": "q"}', "no text field 'question'"),
        ('{"question": "q", "passage": 5}', "passage=5 must be a text"),
        (
            '{"question": "q", "options": ["(A)1", "2"], "label": "A"}',
            r"option '2' must begin with \(B\)",
        ),
        (
            '{"question": "q", "options": ["(A)1", "(B)2"], "label": "C"}',
            "label='C' must be one of A, B",
        ),
    ],
)
def test_bad_files_end_in_one_line(models, tmp_path, lines, words):
    (tmp_path / "bad.jsonl").write_text(lines)
    with pytest.raises(UserError, match=words):
        evaluate(model=models[0], tasks=[f"sat_math:{tmp_path}/bad.jsonl"])


def test_a_question_with_an_option_that_loses_characters_is_left_out(models, tmp_path):
    class Letters(ByteTokenizer):
        def _ids_of(self, text):
            return np.frombuffer(text.encode("ascii", "ignore"), np.uint8)

    lines = [
        {"question": "x?", "options": ["(A)the", "(B)東"], "label": "A"},
        {"question": "x?", "options": ["(A)the", "(B)fox"], "label": "B"},
    ]
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    outcome = _sat_math.SatMath(str(tmp_path / "s.jsonl"), Letters()).run(
        packages.load_model(models[0])
    )
    assert (outcome.count, outcome.left_out, list(outcome.numbers)) == (1, 1, [2])
