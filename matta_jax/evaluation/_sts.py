"""Semantic textual similarity: do the cosines of vectors order pairs of texts as people do?"""

import math
from typing import Any

import numpy as np
import scipy.stats

from matta_jax import storage
from matta_jax.config import Config
from matta_jax.data import file_fingerprint, read_json_lines, read_text, text_of
from matta_jax.errors import UserError, shorten
from matta_jax.evaluation._tasks import CONFIDENCE, Outcome, Score
from matta_jax.packages import Model
from matta_jax.serving import embed

Pairs = list[tuple[str, str, float]]
"""First text, second text, score."""

_FORM = (
    '{"text": "...", "pair": "...", "score": 3.5} a line, or columns parted by tabs: both texts '
    "and the score, or those of the STS benchmark"
)
# Of the STS benchmark's files: genre, file, year, number, score, texts, and where they are from.
_BENCHMARK_COLUMNS = 7


class Sts:
    """Spearman's correlation of cosines with the scores that people gave, and Fisher's interval."""

    def __init__(self, where: str, config: Config):
        what = f"tasks='sts:{where}'"
        if not config.model.reads_pairs:
            raise UserError(f"{what} is for embedders; this model is {config.model.a_noun}")
        self.where = where
        path = storage.path(where)
        self._pairs = _read(path, what)
        self._scores = np.array([score for _, _, score in self._pairs])
        if len(self._pairs) < 3 or len(set(self._scores)) < 2:
            raise UserError(
                f"{what} has {len(self._pairs)} pairs of {len(set(self._scores))} different "
                "scores; an order needs three pairs, and two scores"
            )
        self.fingerprint = file_fingerprint(path)
        self.baselines = _baselines(self._pairs, self._scores)

    def run(self, model: Model) -> Outcome:
        """Scores a model on all pairs."""
        texts = list(dict.fromkeys(text for pair in self._pairs for text in pair[:2]))
        vectors = dict(zip(texts, embed(model, texts), strict=True))
        cosines = np.array([vectors[a] @ vectors[b] for a, b, _ in self._pairs])
        value = spearman(cosines, self._scores)
        score = Score(f"sts:{self.where}", value, _interval(value, len(cosines)))
        return Outcome([score], None, len(cosines))


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """The correlation of ranks, ties at their mean; 0 where one has a single value."""
    if min(len(set(values.tolist())) for values in (a, b)) < 2:
        return 0.0
    return float(scipy.stats.spearmanr(a, b).statistic)


def _interval(value: float, count: int) -> tuple[float, float]:
    """Fisher's, with the variance of ranks of Bonett and Wright (2000)."""
    if count <= 3 or abs(value) >= 1:
        return (-1.0, 1.0)
    half = scipy.stats.norm.ppf((1 + CONFIDENCE) / 2) * math.sqrt((1 + value**2 / 2) / (count - 3))
    center = math.atanh(value)
    return math.tanh(center - half), math.tanh(center + half)


def _read(path: storage.Path, what: str) -> Pairs:
    if ".jsonl" in path.suffixes:
        pairs = []
        for number, value in read_json_lines(path, what, _FORM):
            where = f"{what}: {path} line {number}"
            texts = [text_of(value, field, where) for field in ("text", "pair")]
            pairs.append((texts[0], texts[1], _score(value.get("score"), where)))
        return pairs
    return _columns(path, what)


def _columns(path: storage.Path, what: str) -> Pairs:
    pairs = []
    for number, line in enumerate(read_text(path, what).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{what}: {path} line {number}"
        # Quotes are part of a text: the benchmark's files have single ones.
        columns = line.rstrip("\r").split("\t")
        if len(columns) >= _BENCHMARK_COLUMNS:
            columns = [columns[5], columns[6], columns[4]]
        if len(columns) != 3:
            raise UserError(f"{where} has {len(columns)} columns; it must be {_FORM}")
        pairs.append((columns[0], columns[1], _score(_number(columns[2]), where)))
    return pairs


def _number(text: str) -> Any:
    """The number that a text says, or the text."""
    try:
        return float(text)
    except ValueError:
        return text


def _score(value: Any, where: str) -> float:
    if not (storage.is_number(value) and math.isfinite(value)):
        raise UserError(f"{where}: score={shorten(value)} must be a finite number")
    return float(value)


def _baselines(pairs: Pairs, scores: np.ndarray) -> dict[str, float]:
    """Of the cosine of TF-IDF vectors; it learns from the texts of the task alone."""
    # scikit-learn comes with the extra `scorers`.
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError:
        return {}
    first, second = [a for a, _, _ in pairs], [b for _, b, _ in pairs]
    try:
        vectorizer = TfidfVectorizer(sublinear_tf=True).fit(first + second)
    except ValueError:
        return {}  # Texts without a word.
    products = vectorizer.transform(first).multiply(vectorizer.transform(second))
    cosines = np.asarray(products.sum(axis=1))[:, 0]
    return {"TF-IDF cosine": spearman(cosines, scores)}
