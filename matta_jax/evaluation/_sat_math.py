"""SAT Math in AGIEval's format, version 1 (Zhong et al. 2023): questions with lettered options,
asked zero-shot.
"""

import pathlib
import re
from typing import Any

import numpy as np

from matta_jax.data import file_fingerprint, read_json_lines, shorten, text_of
from matta_jax.errors import UserError
from matta_jax.evaluation._likelihood import encode_request, likelihoods
from matta_jax.evaluation._tasks import Outcome, share
from matta_jax.packages import Model
from matta_jax.tokenizers import Tokenizer

_LETTERS = "ABCDEFG"


class SatMath:
    """Accuracy by the summed log-probability of the options, and `sat_math_norm` by that of a
    character.

    220 questions leave a standard error of 3 points, and small models are at chance: read the
    interval, and compare two models by the paired test.
    """

    def __init__(self, where: str, tokenizer: Tokenizer):
        self.where, path = where, pathlib.Path(where)
        what = f"tasks='sat_math:{where}'"
        rows = [
            _question(value, f"{what}: {path} line {number}")
            for number, value in read_json_lines(path, what)
        ]
        if not rows:
            raise UserError(f"{what}: {path} holds no question; name AGIEval's JSON lines")
        self.fingerprint = file_fingerprint(path)
        self.baselines = {"chance": float(np.mean([1 / len(options) for _, options, _ in rows]))}
        self._rows = rows
        self._requests = [
            encode_request(tokenizer, prompt, " " + option)
            for prompt, options, _ in rows
            for option in options
        ]

    def run(self, model: Model) -> Outcome:
        """Scores a model on all questions."""
        found = iter(likelihoods(model, self._requests, label="sat_math"))
        right, right_norm, truncated = [], [], 0
        for _, options, label in self._rows:
            own = [next(found) for _ in options]
            log_probs = np.array([one.log_prob for one in own])
            right.append(int(np.argmax(log_probs)) == label)
            right_norm.append(
                int(np.argmax(log_probs / [len(option) for option in options])) == label
            )
            truncated += any(one.truncated for one in own)
        scores = [share(f"sat_math:{self.where}", np.array(right))]
        scores.append(share(f"sat_math_norm:{self.where}", np.array(right_norm)))
        return Outcome(scores, np.array(right), len(right), truncated)


def _question(value: dict[str, Any], where: str) -> tuple[str, list[str], int]:
    """Returns the prompt, the options and the index of the right one."""
    question, options, label = (
        text_of(value, "question", where),
        value.get("options"),
        value.get("label"),
    )
    passage = value.get("passage")
    if not isinstance(passage, str | None):
        raise UserError(f"{where}: passage={shorten(passage)} must be a text, or null")
    if not isinstance(options, list) or not 2 <= len(options) <= len(_LETTERS):
        raise UserError(
            f"{where}: options={shorten(options)} must be a list of 2 to {len(_LETTERS)} texts"
        )
    for i, option in enumerate(options):
        if not isinstance(option, str) or not re.match(rf"\({_LETTERS[i]}\)", option):
            raise UserError(f"{where}: option {shorten(option)} must begin with ({_LETTERS[i]})")
    known = _LETTERS[: len(options)]
    if not isinstance(label, str) or len(label) != 1 or label not in known:
        raise UserError(f"{where}: label={shorten(label)} must be one of {', '.join(known)}")
    prompt = (
        f"{passage or ''}Q: {question} Answer Choices: {' '.join(options)}\n"
        f"A: Among A through {known[-1]}, the answer is"
    )
    return prompt, options, known.index(label)
