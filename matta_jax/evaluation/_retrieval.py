"""Retrieval: do vectors find the documents that answer a query? Folders in the layout of BEIR.

corpus.jsonl      {"_id": "d1", "title": "...", "text": "..."} a line; a title may be missing
queries.jsonl     {"_id": "q1", "text": "..."}
qrels/test.tsv    query-id, corpus-id and score, parted by tabs, below a line of these names
"""

import math
from collections.abc import Iterator, Mapping

import numpy as np
import scipy.stats

from matta_jax import storage
from matta_jax.config import Config
from matta_jax.data import file_fingerprint, read_json_lines, read_text, text_of
from matta_jax.errors import UserError, shorten
from matta_jax.evaluation._tasks import CONFIDENCE, Outcome, Score
from matta_jax.packages import Model
from matta_jax.serving import embed

Judgements = dict[str, dict[str, int]]
"""By query and document, how well the document answers it: 0 not at all."""

_TOP = 10
_RECALLED = 100
_FILES = ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv")
# Queries whose similarities to all documents exist at once.
_BATCH_SIZE = 256


class Retrieval:
    """nDCG at 10 (Järvelin and Kekäläinen 2002, gains as judged) of documents by their cosine with
    the query; beside it the reciprocal rank of the first right one among ten, and the share of the
    right ones among a hundred. All are means over the queries that have a right document.
    """

    def __init__(self, where: str, config: Config):
        what = f"tasks='retrieval:{where}'"
        if not config.model.reads_pairs:
            raise UserError(f"{what} is for embedders; this model is {config.model.a_noun}")
        self.where = where
        folder = storage.path(where)
        corpus, queries, judgements = (folder / name for name in _FILES)
        self._documents = _texts(corpus, what)
        texts = _texts(queries, what)
        self._judgements = _judgements(judgements, what, texts, self._documents)
        self._queries = {name: texts[name] for name in self._judgements}
        digests = [file_fingerprint(folder / name) for name in _FILES]
        self.fingerprint = "-".join(digest[:10] for digest in digests)
        self.baselines: dict[str, float] = {}

    def run(self, model: Model) -> Outcome:
        """Ranks all documents for each query by a model's vectors."""
        documents_DE = embed(model, list(self._documents.values()))
        queries_QE = embed(model, list(self._queries.values()))
        names = np.array(list(self._documents))

        figures = []
        for start in range(0, len(queries_QE), _BATCH_SIZE):
            cosines_QD = queries_QE[start : start + _BATCH_SIZE] @ documents_DE.T
            chosen = list(self._queries)[start : start + _BATCH_SIZE]
            for query, cosines_D in zip(chosen, cosines_QD, strict=True):
                # A query that is a document itself is no answer to itself, as in BEIR.
                ranked = [name for name in names[_best(cosines_D)] if name != query]
                figures.append(figures_of(ranked[:_RECALLED], self._judgements[query]))

        means = [_mean(values) for values in zip(*figures, strict=True)]
        labels = ("retrieval", "retrieval_mrr", "retrieval_recall")
        scores = [
            Score(f"{label}:{self.where}", value, interval)
            for label, (value, interval) in zip(labels, means, strict=True)
        ]
        return Outcome(scores, None, len(figures))


def figures_of(ranked: list[str], judged: Mapping[str, int]) -> tuple[float, float, float]:
    """nDCG at 10, the reciprocal rank at 10, and recall, of documents in their order."""
    gains = [judged.get(name, 0) for name in ranked]
    best_gains = sorted(judged.values(), reverse=True)
    ideal = _discounted(best_gains[:_TOP])
    right_ranks = [rank for rank, gain in enumerate(gains[:_TOP], start=1) if gain > 0]
    num_right = sum(gain > 0 for gain in judged.values())
    recall = sum(gain > 0 for gain in gains) / num_right
    reciprocal_rank = 1 / right_ranks[0] if right_ranks else 0.0
    return _discounted(gains[:_TOP]) / ideal, reciprocal_rank, recall


def _discounted(gains: list[int]) -> float:
    return sum(gain / math.log2(rank + 1) for rank, gain in enumerate(gains, start=1))


def _best(cosines_D: np.ndarray) -> np.ndarray:
    """Indices of the nearest documents, nearest first: one more than are counted, as one of them
    may be the query itself. Of equals the first.
    """
    return np.argsort(-cosines_D, kind="stable")[: _RECALLED + 1]


def _mean(values: tuple[float, ...]) -> tuple[float, tuple[float, float] | None]:
    """The mean over queries, with its normal interval; None of a single query."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    half = float(scipy.stats.norm.ppf((1 + CONFIDENCE) / 2)) * error
    return mean, (max(mean - half, 0.0), min(mean + half, 1.0))


def _texts(path: storage.Path, what: str) -> dict[str, str]:
    """The texts of a file, by their `_id`; a title stands before its text."""
    texts: dict[str, str] = {}
    for number, value in read_json_lines(path, what):
        where = f"{what}: {path} line {number}"
        name, text = text_of(value, "_id", where), text_of(value, "text", where)
        if name in texts:
            raise UserError(f"{where}: _id={shorten(name)} is there already; mend or remove it")
        title = text_of(value, "title", where) if value.get("title") else ""
        texts[name] = f"{title} {text}".strip()
    if not texts:
        raise UserError(f"{what}: {path} is empty; fetch the set again")
    return texts


def _judgements(
    path: storage.Path, what: str, queries: Mapping[str, str], documents: Mapping[str, str]
) -> Judgements:
    """By query that has a right document, what is judged of it."""
    judged: Judgements = {}
    for where, (query, document, score) in _rows(path, what):
        for field, name, names in (
            ("query-id", query, queries),
            ("corpus-id", document, documents),
        ):
            if name not in names:
                raise UserError(f"{where}: {field}={shorten(name)} is in no file of the folder")
        try:
            judged.setdefault(query, {})[document] = int(score)
        except ValueError:
            raise UserError(f"{where}: score={shorten(score)} must be a whole number") from None
    right = {query: by_name for query, by_name in judged.items() if max(by_name.values()) > 0}
    if not right:
        raise UserError(f"{what}: {path} judges no document as right; fetch the set again")
    return right


def _rows(path: storage.Path, what: str) -> Iterator[tuple[str, list[str]]]:
    for number, line in enumerate(read_text(path, what).split("\n"), start=1):
        columns = line.rstrip("\r").split("\t")
        # Its first line names the columns.
        if not line.strip() or columns[0] == "query-id":
            continue
        where = f"{what}: {path} line {number}"
        if len(columns) != 3:
            raise UserError(
                f"{where} has {len(columns)} columns; it must be query-id, corpus-id and score, "
                "parted by tabs"
            )
        yield where, columns
