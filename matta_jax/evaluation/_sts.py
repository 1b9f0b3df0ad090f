"""Semantic textual similarity: do the cosines of vectors order pairs of texts as people do?"""

import math

import numpy as np
import scipy.stats

from matta_jax import storage
from matta_jax.config import Config
from matta_jax.data import PairLine, file_fingerprint, read_pair_lines
from matta_jax.errors import UserError
from matta_jax.evaluation._tasks import CONFIDENCE, Outcome, Score
from matta_jax.packages import Model
from matta_jax.serving import embed


class Sts:
    """Spearman's correlation of cosines with the scores that people gave, and Fisher's interval."""

    def __init__(self, where: str, config: Config):
        what = f"tasks='sts:{where}'"
        if not config.model.reads_pairs:
            raise UserError(f"{what} is for embedders; this model is {config.model.a_noun}")
        self.where = where
        path = storage.path(where)
        self._pairs = list(read_pair_lines(path, what))
        self._scores = np.array([pair.score for pair in self._pairs])
        if len(self._pairs) < 3 or len(set(self._scores)) < 2:
            raise UserError(
                f"{what} has {len(self._pairs)} pairs of {len(set(self._scores))} different "
                "scores; an order needs three pairs, and two scores"
            )
        self.fingerprint = file_fingerprint(path)
        self.baselines = _baselines(self._pairs, self._scores)

    def run(self, model: Model) -> Outcome:
        """Scores a model on all pairs."""
        texts = list(dict.fromkeys(text for pair in self._pairs for text in (pair.text, pair.pair)))
        vectors = dict(zip(texts, embed(model, texts), strict=True))
        cosines = np.array([vectors[pair.text] @ vectors[pair.pair] for pair in self._pairs])
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


def _baselines(pairs: list[PairLine], scores: np.ndarray) -> dict[str, float]:
    """Of the cosine of TF-IDF vectors; it learns from the texts of the task alone."""
    # scikit-learn comes with the extra `scorers`.
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError:
        return {}
    first, second = [pair.text for pair in pairs], [pair.pair for pair in pairs]
    try:
        vectorizer = TfidfVectorizer(sublinear_tf=True).fit(first + second)
    except ValueError:
        return {}  # Texts without a word.
    products = vectorizer.transform(first).multiply(vectorizer.transform(second))
    cosines = np.asarray(products.sum(axis=1))[:, 0]
    return {"TF-IDF cosine": spearman(cosines, scores)}
