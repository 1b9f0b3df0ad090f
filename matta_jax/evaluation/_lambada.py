"""LAMBADA: the last word of a passage (Paperno et al. 2016), on OpenAI's variant of the text."""

import collections
import math
import pathlib
import re

import numpy as np

from matta_jax.data import file_fingerprint, read_json_lines, text_of
from matta_jax.errors import UserError
from matta_jax.evaluation._likelihood import encode_request, likelihoods
from matta_jax.evaluation._tasks import Outcome, Score, share
from matta_jax.packages import Model
from matta_jax.tokenizers import Tokenizer


class Lambada:
    """Whole-word accuracy: every token of the last word, with the space before it, is the most
    likely one.

    Beside it the word's perplexity, and under its own name the accuracy of the last BPE token
    alone, which is easier: GPT-2's published 45.99 (small) and 55.48 (medium) are of that kind;
    whole words of the small one are 32.6 %.
    """

    def __init__(self, where: str, tokenizer: Tokenizer):
        self.where, path = where, pathlib.Path(where)
        pairs = [
            _split(text, path, number) for number, text in _texts(path, f"tasks='lambada:{where}'")
        ]
        self.fingerprint = file_fingerprint(path)
        self.baselines = {
            "most frequent long word": _share_of(pairs, r"[A-Za-z]{5,}"),
            "most frequent name": _share_of(pairs, r"(?<=[a-z,;] )[A-Z][a-z]+"),
        }
        self._requests = [encode_request(tokenizer, context, target) for context, target in pairs]

    def run(self, model: Model) -> Outcome:
        """Scores a model on all passages."""
        found = likelihoods(model, self._requests, label="lambada")
        right = np.array([bool(one.is_top.all()) for one in found])
        last = np.array([bool(one.is_top[-1]) for one in found])
        mean = sum(one.log_prob for one in found) / len(found)
        scores = [
            share(f"lambada:{self.where}", right),
            Score(f"lambada_perplexity:{self.where}", math.exp(min(-mean, 700.0))),
            share(f"lambada_last_token:{self.where}", last),
        ]
        return Outcome(scores, right, len(found), sum(one.truncated for one in found))


def _texts(path: pathlib.Path, what: str) -> list[tuple[int, str]]:
    rows = []
    for number, value in read_json_lines(path, what):
        rows.append(
            (
                number,
                text_of(
                    value, "text", f"{what}: {path} line {number}", "name LAMBADA's JSON lines"
                ),
            )
        )
    if not rows:
        raise UserError(f"{what}: {path} holds no example; name LAMBADA's JSON lines")
    return rows


def _split(text: str, path: pathlib.Path, number: int) -> tuple[str, str]:
    context, space, word = text.strip().rpartition(" ")
    if not context.strip():
        raise UserError(
            f"tasks='lambada:{path}': line {number} must be words, with a space before the last "
            "one; remove it"
        )
    return context, space + word


def _share_of(pairs: list[tuple[str, str]], pattern: str) -> float:
    """How often the word that matches most often in the context, the first of several, is the last
    word.
    """
    words = re.compile(pattern)
    hits = 0
    for context, target in pairs:
        common = collections.Counter(words.findall(context)).most_common(1)
        hits += bool(common) and common[0][0] == target.strip()
    return hits / len(pairs)
