"""Labelled examples of a scorer: JSON lines with a text or two, features and a class."""

import dataclasses
import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from matta_jax import storage
from matta_jax.config import DataConfig, ScorerConfig
from matta_jax.data._corpora import Corpus, Document, is_held_out
from matta_jax.data._jsonl import read_json_lines, text_of
from matta_jax.errors import UserError, shorten
from matta_jax.tokenizers import Tokenizer

# The largest dense feature: products with it stay within float32.
_LARGEST = 1e30


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
        values = np.array([example.categorical for example in self.examples], np.int32)
        columns = values + self.offsets
        one_hot = np.zeros((len(columns), self.num_values))
        np.put_along_axis(one_hot, columns, 1.0, axis=1)
        return one_hot

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """Returns `tokens` [T] int32, padded with 0, `length`, `label`, `weight` 1, and features
        where there are.
        """
        example = self.examples[int(index)]
        ids = self.ids[int(index)]
        tokens = np.zeros(self.seq_len, np.int32)
        tokens[: len(ids)] = ids

        row = {
            "tokens": tokens,
            "length": np.array(len(ids), np.int32),
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
    model: ScorerConfig,
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
    settings = json.dumps([tokenizer.fingerprint, data.seq_len])
    digest = hashlib.blake2b(settings.encode(), digest_size=16)
    examples = []
    ids = []
    truncated = 0

    for example in _read(source, data, model, what):
        if held_out is not None and is_held_out(example.key, data.eval_fraction) != held_out:
            continue
        example_ids = _encode(example, tokenizer)
        truncated += len(example_ids) > data.seq_len
        examples.append(example)
        # Of a long text the end stays.
        ids.append(example_ids[-data.seq_len :])
        digest.update(json.dumps(dataclasses.astuple(example)).encode())

    if not examples:
        raise no_example(what, held_out)
    # All categorical features are rows of one table, one feature's after another's.
    *offsets, num_values = itertools.accumulate(model.categories, initial=0)
    return ExampleSet(
        examples=examples,
        ids=ids,
        seq_len=data.seq_len,
        offsets=np.array(offsets, np.int32),
        num_values=num_values,
        truncated=truncated,
        fingerprint=digest.hexdigest(),
    )


def no_example(what: str, held_out: bool | None) -> UserError:
    """The line about a source without an example on a side of its split."""
    side = {None: "", True: "held-out ", False: "training "}[held_out]
    return UserError(
        f"{what} has no {side}example; add some, change data.eval_fraction, or name "
        "data.eval_source"
    )


def _encode(example: Example, tokenizer: Tokenizer) -> np.ndarray:
    """The ids of an example's text, and after a separator of its second text."""
    text_ids = np.asarray(tokenizer.encode(example.text), np.int32)
    if example.pair is None:
        return text_ids
    pair_ids = np.asarray(tokenizer.encode(example.pair), np.int32)
    return np.concatenate([text_ids, [tokenizer.eos_id], pair_ids])


def _read(source: str, data: DataConfig, model: ScorerConfig, what: str) -> Iterator[Example]:
    for value, where in example_lines(source, what):
        yield _example(value, data, model, where)


def example_lines(source: str, what: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Yields the object of each line of a source's files, and where it is, as errors say it."""
    if not source.startswith("text:"):
        raise UserError(f"{what}: examples are JSON lines; name text:GLOB of .jsonl files")
    for path in Corpus(source).files():
        if path.suffix == ".txt":
            raise UserError(f"{what} matches {path}; examples are .jsonl or .jsonl.gz files")
        for number, value in read_json_lines(path, what):
            yield value, f"{what}: {path} line {number}"


def _example(value: dict[str, Any], data: DataConfig, model: ScorerConfig, where: str) -> Example:
    text = text_of(value, data.text_field, where, "set data.text_field")
    pair = None
    if data.pair_field is not None:
        pair = text_of(value, data.pair_field, where, "set data.pair_field")

    label = _label(value, model, where)
    dense_field = f"model.num_dense={model.num_dense}"
    dense = _numbers(value, "dense", model.num_dense, dense_field, where)
    categories_field = f"model.categories={model.categories}"
    categorical = _numbers(value, "categorical", len(model.categories), categories_field, where)
    _check_categorical(categorical, model.categories, where)
    _check_dense(dense, where)
    return Example(text, pair, label, tuple(map(float, dense)), tuple(categorical))


def _label(value: dict[str, Any], model: ScorerConfig, where: str) -> int:
    # One output, through a sigmoid, tells two classes apart.
    num_classes = max(model.num_classes, 2)
    label = value.get("label")
    # By `type`: true and false are ints to isinstance.
    if type(label) is not int or not 0 <= label < num_classes:
        raise UserError(
            f"{where}: label={shorten(label)} must be a class, a whole number from 0 to "
            f"{num_classes - 1} (model.num_classes)"
        )
    return label


def _check_categorical(numbers: Sequence[Any], sizes: Sequence[int], where: str) -> None:
    for i, (number, size) in enumerate(zip(numbers, sizes, strict=True)):
        if type(number) is not int or not 0 <= number < size:
            raise UserError(
                f"{where}: categorical[{i}]={shorten(number)} must be a whole number from 0 to "
                f"{size - 1} (model.categories)"
            )


def _check_dense(numbers: Sequence[Any], where: str) -> None:
    for i, number in enumerate(numbers):
        # Not `>`, which is false of NaN.
        if not abs(number) <= _LARGEST:
            raise UserError(
                f"{where}: dense[{i}]={shorten(number)} must be a finite number, of at most "
                f"{_LARGEST:.0e}"
            )


def _numbers(value: dict[str, Any], name: str, size: int, field: str, where: str) -> list[Any]:
    """The list of `size` numbers under a name; empty where the model reads none."""
    if not size:
        return []

    numbers = value.get(name)
    if (
        not isinstance(numbers, list)
        or len(numbers) != size
        or not all(map(storage.is_number, numbers))
    ):
        raise UserError(
            f"{where}: {name}={shorten(numbers)} must be a list of {size} numbers ({field})"
        )
    return numbers
