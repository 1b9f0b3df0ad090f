"""Lines of two texts, with or without a score: JSON lines, or columns parted by tabs."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from matta_jax import storage
from matta_jax.data._jsonl import read_json_lines, read_text, text_of
from matta_jax.errors import UserError, shorten

PAIR_FORM = (
    '{"text": "...", "pair": "...", "score": 3.5} a line, or columns parted by tabs: both texts '
    "and the score, or those of the STS benchmark"
)
PAIR_SUFFIXES = (".jsonl", ".jsonl.gz", ".tsv", ".tsv.gz", ".csv")
# Of the STS benchmark's files: genre, file, year, number, score, texts, and where they are from.
_BENCHMARK_COLUMNS = 7


@dataclasses.dataclass(frozen=True)
class PairFields:
    """The fields of a JSON line; `score` None: none is read."""

    text: str = "text"
    pair: str = "pair"
    score: str | None = "score"


@dataclasses.dataclass(frozen=True)
class PairLine:
    """A pair of texts; `score` is NaN where none is read."""

    text: str
    pair: str
    score: float = math.nan


def read_pair_lines(
    path: storage.Path, what: str, fields: PairFields = PairFields()
) -> Iterator[PairLine]:
    """Yields the pairs of a file.

    Args:
      path: .jsonl or .jsonl.gz; all others are columns parted by tabs: first text, second text and
        score, the first two alone where no score is read, or those of the STS benchmark.
      what: asked for it, as errors say it.
      fields: of JSON lines.

    Raises:
      UserError: a line of another form, with its number.
    """
    if ".jsonl" not in path.suffixes:
        yield from _columns(path, what, has_score=fields.score is not None)
        return
    for number, value in read_json_lines(path, what, PAIR_FORM):
        where = f"{what}: {path} line {number}"
        text = text_of(value, fields.text, where, "set data.text_field")
        pair = text_of(value, fields.pair, where, "set data.pair_field")
        if fields.score is None:
            yield PairLine(text, pair)
            continue
        yield PairLine(text, pair, _score(value.get(fields.score), fields.score, where))


def _columns(path: storage.Path, what: str, *, has_score: bool) -> Iterator[PairLine]:
    for number, line in enumerate(read_text(path, what).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{what}: {path} line {number}"
        # Quotes are part of a text: the benchmark's files have single ones.
        columns = line.rstrip("\r").split("\t")
        if len(columns) >= _BENCHMARK_COLUMNS:
            columns = [columns[5], columns[6], columns[4]]
        if not has_score and len(columns) in (2, 3):
            yield PairLine(columns[0], columns[1])
            continue
        if len(columns) != 3:
            raise UserError(f"{where} has {len(columns)} columns; it must be {PAIR_FORM}")
        yield PairLine(columns[0], columns[1], _score(_number(columns[2]), "score", where))


def _number(text: str) -> Any:
    """The number that a text says, or the text."""
    try:
        return float(text)
    except ValueError:
        return text


def _score(value: Any, field: str, where: str) -> float:
    if not (storage.is_number(value) and math.isfinite(value)):
        raise UserError(f"{where}: {field}={shorten(value)} must be a finite number")
    return float(value)
