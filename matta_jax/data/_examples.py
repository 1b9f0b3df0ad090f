"""Labelled examples of a scorer: JSON lines with a text or two, features and a class."""

import dataclasses
import hashlib
import itertools
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from matta_jax.config import DataConfig, ModelConfig
from matta_jax.data._corpora import Corpus, Document, is_held_out
from matta_jax.data._jsonl import read_json_lines, shorten, text_of
from matta_jax.errors import UserError
from matta_jax.tokenizers import Tokenizer

_MOST = 1e30  # Of a dense feature: products with it stay float32.


@dataclasses.dataclass(frozen=True)
class Example:
    """One example; `key` is what the split into training and held out goes by."""

    text: str
    pair: str | None
    label: int
    dense: tuple[float, ...]
    categorical: tuple[int, ...]

    @property
    def key(self) -> Document:
        """The first text: examples of one question stay together."""
        return Document(hashlib.blake2b(self.text.encode()).hexdigest(), self.text)


@dataclasses.dataclass(frozen=True)
class ExampleSet:
    """Tokenised examples in memory, for random access.

    Attributes:
      examples: the examples.
      ids: token ids of each, at most seq_len: longer texts lose their start.
      seq_len: T.
      offsets: what is added to each categorical feature, to be a row of one table.
      num_values: rows of that table.
      truncated: examples that lost their start.
      fingerprint: hash of all of it.
    """

    examples: Sequence[Example]
    ids: Sequence[np.ndarray]
    seq_len: int
    offsets: np.ndarray
    num_values: int
    truncated: int
    fingerprint: str

    @property
    def labels(self) -> np.ndarray:
        """The classes of all examples [n]."""
        return np.array([example.label for example in self.examples])

    @property
    def dense(self) -> np.ndarray:
        """Dense features of all examples [n, F]."""
        return np.array([example.dense for example in self.examples])

    @property
    def one_hot(self) -> np.ndarray:
        """Categorical features of all examples [n, values of all], 1 at each value."""
        rows = np.array([example.categorical for example in self.examples], np.int32) + self.offsets
        found = np.zeros((len(rows), self.num_values))
        np.put_along_axis(found, rows, 1.0, axis=1)
        return found

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Returns `tokens` [T] int32, padded with 0, `length`, `label`, `weight` 1, and features
        where there are.
        """
        example, own = self.examples[int(index)], self.ids[int(index)]
        tokens = np.zeros(self.seq_len, np.int32)
        tokens[: len(own)] = own
        row = {
            "tokens": tokens,
            "length": np.array(len(own), np.int32),
            "label": np.array(example.label, np.int32),
            "weight": np.array(1, np.float32),
        }
        if example.dense:
            row["dense"] = np.array(example.dense, np.float32)
        if example.categorical:
            row["categorical"] = np.array(example.categorical, np.int32) + self.offsets
        return row

    def part(self, start: int, stop: int | None = None) -> "ExampleSet":
        """The examples from `start` to `stop`."""
        return dataclasses.replace(
            self,
            examples=self.examples[start:stop],
            ids=self.ids[start:stop],
            fingerprint=f"{self.fingerprint}[{start}:{'' if stop is None else stop}]",
        )


def read_examples(
    source: str,
    data: DataConfig,
    model: ModelConfig,
    tokenizer: Tokenizer,
    *,
    held_out: bool | None = None,
) -> ExampleSet:
    """Reads and tokenises the examples of a source.

    Args:
      source: `text:GLOB` of .jsonl or .jsonl.gz files.
      data: names of fields, length, split.
      model: classes and features that examples must have.
      tokenizer: of the texts; a second text follows its separator.
      held_out: one side of the split by a hash of the first text; None: all.

    Raises:
      UserError: a file that is no JSON lines, a field that is missing or of another kind, or no
        example.
    """
    what = f"data source {source!r}"
    kept, ids, truncated = [], [], 0
    digest = hashlib.blake2b(
        json.dumps([tokenizer.fingerprint, data.seq_len]).encode(), digest_size=16
    )
    for example in _read(source, data, model, what):
        if held_out is not None and is_held_out(example.key, data.eval_fraction) != held_out:
            continue
        own = np.asarray(tokenizer.encode(example.text), np.int32)
        if example.pair is not None:
            own = np.concatenate(
                [own, [tokenizer.eos_id], np.asarray(tokenizer.encode(example.pair), np.int32)]
            )
        truncated += len(own) > data.seq_len
        kept.append(example)
        ids.append(own[-data.seq_len :])
        digest.update(json.dumps(dataclasses.astuple(example)).encode())
    if not kept:
        side = {None: "", True: "held-out ", False: "training "}[held_out]
        raise UserError(
            f"{what} has no {side}example; add some, change data.eval_fraction, or name "
            "data.eval_source"
        )
    *offsets, num_values = itertools.accumulate(model.categories, initial=0)
    return ExampleSet(
        kept,
        ids,
        data.seq_len,
        np.array(offsets, np.int32),
        num_values,
        truncated,
        digest.hexdigest(),
    )


def _read(source: str, data: DataConfig, model: ModelConfig, what: str) -> Iterator[Example]:
    if not source.startswith("text:"):
        raise UserError(
            f"{what}: examples of a scorer are JSON lines; name text:GLOB of .jsonl files"
        )
    for path in Corpus(source).files():
        if path.suffix == ".txt":
            raise UserError(
                f"{what} matches {path}; examples of a scorer are .jsonl or .jsonl.gz files"
            )
        for number, value in read_json_lines(path, what):
            yield _example(value, data, model, f"{what}: {path} line {number}", path)


def _example(
    value: dict[str, Any], data: DataConfig, model: ModelConfig, where: str, path: pathlib.Path
) -> Example:
    texts = []
    for setting, name in (("text_field", data.text_field), ("pair_field", data.pair_field)):
        texts.append(None if name is None else text_of(value, name, where, f"set data.{setting}"))
    classes = max(model.num_classes, 2)
    label = value.get("label")
    if type(label) is not int or not 0 <= label < classes:
        raise UserError(
            f"{where}: label={shorten(label)} must be a class, a whole number from 0 to "
            f"{classes - 1} "
            "(model.num_classes)"
        )
    dense = _numbers(value, "dense", model.num_dense, f"model.num_dense={model.num_dense}", where)
    categorical = _numbers(
        value, "categorical", len(model.categories), f"model.categories={model.categories}", where
    )
    for i, (one, size) in enumerate(zip(categorical, model.categories, strict=True)):
        if type(one) is not int or not 0 <= one < size:
            raise UserError(
                f"{where}: categorical[{i}]={shorten(one)} must be a whole number from 0 to "
                f"{size - 1} "
                "(model.categories)"
            )
    for i, number in enumerate(dense):
        if not abs(number) <= _MOST:
            raise UserError(
                f"{where}: dense[{i}]={shorten(number)} must be a finite number, of at most "
                f"{_MOST:.0e}"
            )
    assert texts[0] is not None
    return Example(texts[0], texts[1], label, tuple(map(float, dense)), tuple(categorical))


def _numbers(value: dict[str, Any], name: str, size: int, field: str, where: str) -> list[Any]:
    if not size:
        return []
    found = value.get(name)
    if (
        not isinstance(found, list)
        or len(found) != size
        or not all(type(x) in (int, float) for x in found)
    ):
        raise UserError(
            f"{where}: {name}={shorten(found)} must be a list of {size} numbers ({field})"
        )
    return found
