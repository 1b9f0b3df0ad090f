"""LAMBADA: the last word of a passage (Paperno et al. 2016), on OpenAI's variant of the text."""

import collections
import math
import re

import numpy as np

from matta_jax import storage
from matta_jax.data import file_fingerprint, read_json_lines, text_of
from matta_jax.errors import UserError, shorten
from matta_jax.evaluation._likelihood import (
    checked_request,
    likelihoods,
    warn_of_left_out,
)
from matta_jax.evaluation._tasks import Outcome, Score, share
from matta_jax.packages import Model
from matta_jax.tokenizers import Tokenizer

_LONG_WORD = re.compile(r"[A-Za-z]{5,}")
# A capital that does not begin a sentence.
_NAME = re.compile(r"(?<=[a-z,;] )[A-Z][a-z]+")

# Not the form with a passage a line, which the text was first published in.
_FORM = '{"text": "..."} a line'

# The largest logarithm whose exponential is still a float, roughly.
_MAX_NATS = 700.0


class Lambada:
    """Whole-word accuracy: every token of the last word, with the space before it, is the most
    likely one.

    Beside it the word's perplexity, and under its own name the accuracy of the last BPE token
    alone, which is easier: GPT-2's published 45.99 (small) and 55.48 (medium) are of that kind;
    whole words of the small one are 32.6 %.
    """

    def __init__(self, where: str, tokenizer: Tokenizer):
        self.where = where
        path = storage.path(where)

        what = f"tasks='lambada:{where}'"
        pairs = []
        self._requests = []
        self._numbers = []
        reasons = {}
        for number, text in _texts(path, what):
            context, target = _split(text, path, number)
            request, reason = checked_request(tokenizer, context, target)
            if reason:
                reasons[f"line {number}"] = f"the word {shorten(target.strip())} {reason}"
                continue
            pairs.append((context, target))
            self._requests.append(request)
            self._numbers.append(number)
        warn_of_left_out(what, reasons, len(pairs))
        self._left_out = len(reasons)

        self.fingerprint = file_fingerprint(path)
        self.baselines = {
            "most frequent long word": _share_of(pairs, _LONG_WORD),
            "most frequent name": _share_of(pairs, _NAME),
        }

    def run(self, model: Model) -> Outcome:
        """Scores a model on all passages."""
        results = likelihoods(model, self._requests, label="lambada")
        right = np.array([bool(result.is_top.all()) for result in results])
        right_last_token = np.array([bool(result.is_top[-1]) for result in results])

        mean_log_prob = sum(result.log_prob for result in results) / len(results)
        perplexity = math.exp(min(-mean_log_prob, _MAX_NATS))
        scores = [
            share(f"lambada:{self.where}", right),
            Score(f"lambada_perplexity:{self.where}", perplexity),
            share(f"lambada_last_token:{self.where}", right_last_token),
        ]
        num_truncated = sum(result.truncated for result in results)
        return Outcome(scores, right, len(results), num_truncated, self._left_out, self._numbers)


def _texts(path: storage.Path, what: str) -> list[tuple[int, str]]:
    """Returns each passage with the number of its line."""
    rows = []
    for number, value in read_json_lines(path, what, _FORM):
        where = f"{what}: {path} line {number}"
        text = text_of(value, "text", where, f"name LAMBADA's JSON lines, {_FORM}")
        rows.append((number, text))
    if not rows:
        raise UserError(f"{what}: {path} holds no example; name LAMBADA's JSON lines, {_FORM}")
    return rows


def _split(text: str, path: storage.Path, number: int) -> tuple[str, str]:
    """Returns the context, and the last word with the space before it."""
    context, space, word = text.strip().rpartition(" ")
    if not context.strip():
        raise UserError(
            f"tasks='lambada:{path}': line {number} must be words, with a space before the last "
            "one; remove it"
        )
    return context, space + word


def _share_of(pairs: list[tuple[str, str]], pattern: re.Pattern[str]) -> float:
    """How often the word that matches most often in the context, the first of several, is the last
    word.
    """
    num_hits = 0
    for context, target in pairs:
        counts = collections.Counter(pattern.findall(context))
        for word, _ in counts.most_common(1):
            num_hits += word == target.strip()
    return num_hits / len(pairs)
