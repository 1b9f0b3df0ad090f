"""SAT Math in AGIEval's format, version 1 (Zhong et al. 2023): questions with lettered options,
asked zero-shot.
"""

import dataclasses
import re
from typing import Any

import numpy as np

from matta_jax import storage
from matta_jax.data import file_fingerprint, read_json_lines, text_of
from matta_jax.errors import UserError, shorten
from matta_jax.evaluation._likelihood import (
    Request,
    checked_request,
    likelihoods,
    warn_of_left_out,
)
from matta_jax.evaluation._tasks import Outcome, share
from matta_jax.packages import Model
from matta_jax.tokenizers import Tokenizer

_LETTERS = "ABCDEFG"


@dataclasses.dataclass(frozen=True)
class _Question:
    """A question.

    Attributes:
      prompt: what the model reads.
      options: the answers to choose from.
      label: index of the right one.
    """

    prompt: str
    options: list[str]
    label: int


class SatMath:
    """Accuracy by the summed log-probability of the options, and `sat_math_norm` by that of a
    character.

    220 questions leave a standard error of 3 points, and small models are at chance: read the
    interval, and compare two models by the paired test.
    """

    def __init__(self, where: str, tokenizer: Tokenizer):
        self.where = where
        path = storage.path(where)
        what = f"tasks='sat_math:{where}'"

        self._questions = []
        self._requests: list[Request] = []
        self._numbers = []
        reasons = {}
        for number, value in read_json_lines(path, what):
            question = _question(value, f"{what}: {path} line {number}")
            requests, reason = _requests_of(question, tokenizer)
            if reason:
                reasons[f"line {number}"] = reason
                continue
            self._questions.append(question)
            self._requests += requests
            self._numbers.append(number)
        warn_of_left_out(what, reasons, len(self._questions))
        self._left_out = len(reasons)
        if not self._questions:
            raise UserError(f"{what}: {path} holds no question; name AGIEval's JSON lines")
        self.fingerprint = file_fingerprint(path)

        chances = [1 / len(question.options) for question in self._questions]
        self.baselines = {"chance": float(np.mean(chances))}

    def run(self, model: Model) -> Outcome:
        """Scores a model on all questions."""
        # One result for each option, in the order of the questions.
        results = iter(likelihoods(model, self._requests, label="sat_math"))
        right = []
        right_norm = []
        num_truncated = 0
        for question in self._questions:
            option_results = [next(results) for _ in question.options]
            log_probs = np.array([result.log_prob for result in option_results])
            lengths = [len(option) for option in question.options]

            right.append(int(np.argmax(log_probs)) == question.label)
            right_norm.append(int(np.argmax(log_probs / lengths)) == question.label)
            num_truncated += any(result.truncated for result in option_results)

        scores = [
            share(f"sat_math:{self.where}", np.array(right)),
            share(f"sat_math_norm:{self.where}", np.array(right_norm)),
        ]
        return Outcome(
            scores,
            np.array(right),
            len(right),
            num_truncated,
            self._left_out,
            self._numbers,
        )


def _requests_of(question: _Question, tokenizer: Tokenizer) -> tuple[list[Request], str | None]:
    """The request of each option, and why one of them cannot be scored; None where all can."""
    requests = []
    reason = None
    for option in question.options:
        request, loss = checked_request(tokenizer, question.prompt, " " + option)
        if loss:
            reason = reason or f"the option {shorten(option)} {loss}"
        requests.append(request)
    return requests, reason


def _question(value: dict[str, Any], where: str) -> _Question:
    """Reads a line of the file. Raises UserError that names what is wrong with it."""
    question = text_of(value, "question", where)
    options = value.get("options")
    label = value.get("label")
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

    letters = _LETTERS[: len(options)]
    if not isinstance(label, str) or len(label) != 1 or label not in letters:
        raise UserError(f"{where}: label={shorten(label)} must be one of {', '.join(letters)}")

    # AGIEval's own words.
    prompt = (
        f"{passage or ''}Q: {question} Answer Choices: {' '.join(options)}\n"
        f"A: Among A through {letters[-1]}, the answer is"
    )
    return _Question(prompt, options, letters.index(label))
