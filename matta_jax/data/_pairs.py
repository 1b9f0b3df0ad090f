"""Pairs of texts of an embedder, each text read by itself."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence

import numpy as np

from matta_jax.config import DataConfig
from matta_jax.data._corpora import Corpus, is_held_out
from matta_jax.data._examples import Example, ExampleSet, no_example
from matta_jax.data._pair_lines import PAIR_SUFFIXES, PairFields, PairLine, read_pair_lines
from matta_jax.errors import UserError
from matta_jax.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class PairSet(ExampleSet):
    """Tokenised pairs in memory, for random access.

    Attributes:
      pair_ids: token ids of each second text; `ids` are those of the first.
      scores: of each pair; None: none are read.
    """

    pair_ids: Sequence[np.ndarray] = ()
    scores: Sequence[float] | None = None

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Returns `tokens` [2, T] int32, padded with 0, `length` [2], `weight` 1, and `score`
        where there are some.
        """
        texts = (self.ids[int(index)], self.pair_ids[int(index)])
        row = framed_rows(texts, self.seq_len) | {"weight": np.array(1, np.float32)}
        if self.scores is not None:
            row["score"] = np.array(self.scores[int(index)], np.float32)
        return row

    def part(self, start: int, stop: int | None = None) -> "PairSet":
        """The pairs from `start` to `stop`."""
        part = super().part(start, stop)
        assert isinstance(part, PairSet)
        scores = None if self.scores is None else self.scores[start:stop]
        return dataclasses.replace(part, pair_ids=self.pair_ids[start:stop], scores=scores)


def framed_rows(ids: Sequence[np.ndarray], seq_len: int) -> dict[str, np.ndarray]:
    """`tokens` [n, T] int32, padded with 0, and `length` [n] of some texts' ids."""
    tokens = np.zeros((len(ids), seq_len), np.int32)
    for row, text_ids in zip(tokens, ids, strict=True):
        row[: len(text_ids)] = text_ids
    return {"tokens": tokens, "length": np.array([len(text_ids) for text_ids in ids], np.int32)}


def framed_ids(text: str, tokenizer: Tokenizer, seq_len: int) -> tuple[np.ndarray, bool]:
    """The ids of a text between those that stand around one, at most `seq_len`; and whether it
    lost its end.
    """
    start, end = tokenizer.text_ids
    ids = np.asarray(tokenizer.encode(text), np.int32)
    room = seq_len - 2
    return np.concatenate([[start], ids[:room], [end]]).astype(np.int32), len(ids) > room


def read_pairs(
    source: str,
    data: DataConfig,
    tokenizer: Tokenizer,
    *,
    held_out: bool | None = None,
) -> PairSet:
    """Reads and tokenises the pairs of a source; arguments and errors as of `read_examples`."""
    what = f"data source {source!r}"
    if data.pair_field is None:
        raise UserError(
            f"{what}: an embedder reads pairs of texts, and data.pair_field=None; name the field "
            "of the second text, such as pair"
        )
    has_scores = data.score_field is not None
    settings = json.dumps([tokenizer.fingerprint, data.seq_len, "pairs"])
    digest = hashlib.blake2b(settings.encode(), digest_size=16)
    examples: list[Example] = []
    ids: list[np.ndarray] = []
    pair_ids: list[np.ndarray] = []
    scores: list[float] = []
    truncated = 0

    for line in _lines(source, data, what):
        example = Example(line.text, line.pair, label=0, dense=(), categorical=())
        if held_out is not None and is_held_out(example.key, data.eval_fraction) != held_out:
            continue
        first, was_cut = framed_ids(line.text, tokenizer, data.seq_len)
        second, was_pair_cut = framed_ids(line.pair, tokenizer, data.seq_len)
        truncated += was_cut or was_pair_cut
        examples.append(example)
        ids.append(first)
        pair_ids.append(second)
        scores.append(line.score)
        facts = [line.text, line.pair, *([line.score] if has_scores else [])]
        digest.update(json.dumps(facts).encode())

    if not examples:
        raise no_example(what, held_out)
    return PairSet(
        examples=examples,
        ids=ids,
        seq_len=data.seq_len,
        offsets=np.zeros(0, np.int32),
        num_values=0,
        truncated=truncated,
        fingerprint=digest.hexdigest(),
        pair_ids=pair_ids,
        scores=scores if has_scores else None,
    )


def _lines(source: str, data: DataConfig, what: str) -> Iterator[PairLine]:
    if not source.startswith("text:"):
        raise UserError(f"{what}: pairs are lines of text; name text:GLOB of {PAIR_SUFFIXES[0]}")
    assert data.pair_field is not None
    fields = PairFields(data.text_field, data.pair_field, data.score_field)
    for path in Corpus(source).files(PAIR_SUFFIXES):
        yield from read_pair_lines(path, what, fields)
