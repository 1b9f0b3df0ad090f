"""Turns raw files into examples of a scorer, and trains a tokenizer on their texts.

    python experiments/scorers/prepare.py --task=quality --raw=sentence_polarity.zip --output=data/quality
    python experiments/scorers/prepare.py --task=relevance --raw=gsm8k --output=data/relevance

quality: NLTK's `sentence_polarity.zip`; class 1 is a positive sentence. A tenth is in test.jsonl, by a hash.

relevance: `train.jsonl` and `test.jsonl` of GSM8K; a question with its own solution (class 1), and with one of the five
most similar solutions of other questions (class 0). Features: dense, the five of `_DENSE`; categorical, the kind of
question (4 values) and the number of sentences in the solution (8 values, from 0 to 7 and more).

Each folder gets `train.jsonl`, `test.jsonl` and `bpe.json`. Needs: pip install 'matta_jax[scorers,tokenizers]'.
"""

import hashlib
import json
import math
import pathlib
import random
import re
import zipfile
from typing import Any

import numpy as np
import tokenizers
from absl import flags
from sklearn.feature_extraction.text import TfidfVectorizer

from matta_jax.bin import _app
from matta_jax.errors import UserError

_TASK = flags.DEFINE_enum("task", "quality", ["quality", "relevance"], "Which examples to make.")
_RAW = flags.DEFINE_string("raw", None, "The zip file of quality; the folder of relevance.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the examples.")

_VOCAB_SIZE = 8192
_DENSE = (
    "share of the question's numbers in the solution",
    "share of the solution's numbers in the question",
    "share of the solution's capitalised words in the question",
    "share of the question's words in the solution",
    "logarithm of the solution's length over the question's",
)
_KINDS = ("how many", "how much", "what")

Rows = list[dict[str, Any]]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def quality(raw: pathlib.Path) -> dict[str, Rows]:
    """Sentences and their polarity, each once, in an order that depends on their text alone."""
    try:
        with zipfile.ZipFile(raw) as archive:
            texts = {
                label: archive.read(f"sentence_polarity/rt-polarity.{end}").decode("latin-1").splitlines()
                for label, end in ((1, "pos"), (0, "neg"))
            }
    except (OSError, zipfile.BadZipFile, KeyError) as error:
        raise UserError(f"--raw={str(raw)!r} must be NLTK's sentence_polarity.zip ({error})") from None
    labels = {text.strip(): label for label, lines in texts.items() for text in lines if text.strip()}
    rows = [{"text": text, "label": labels[text]} for text in sorted(labels, key=_hash)]
    held_out = [_hash("test " + row["text"]) % 10 == 0 for row in rows]
    return {
        "train": [row for row, out in zip(rows, held_out, strict=True) if not out],
        "test": [row for row, out in zip(rows, held_out, strict=True) if out],
    }


def relevance(raw: pathlib.Path) -> dict[str, Rows]:
    """Questions with their own and with a similar solution, which stand together."""
    return {split: _pairs(_read(raw / f"{split}.jsonl")) for split in ("train", "test")}


def _read(path: pathlib.Path) -> list[tuple[str, str]]:
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
        pairs = [(row["question"].strip(), row["answer"]) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--raw: {path} must be a file of GSM8K ({type(error).__name__}: {error})") from None
    return [(question, re.sub(r"<<.*?>>|\n####.*", "", answer).strip()) for question, answer in pairs]


def _pairs(pairs: list[tuple[str, str]]) -> Rows:
    vectors = TfidfVectorizer(sublinear_tf=True).fit_transform([solution for _, solution in pairs])
    rows = []
    for i in sorted(range(len(pairs)), key=lambda i: _hash(pairs[i][0])):
        question, solution = pairs[i]
        similar = np.asarray((vectors @ vectors[i].T).todense())[:, 0]
        similar[i] = -1
        chosen = random.Random(_hash(question)).choice(list(np.argsort(-similar, kind="stable")[:5]))
        both = [(solution, 1), (pairs[chosen][1], 0)]
        for text, label in both if _hash(question) % 2 else both[::-1]:
            dense, categorical = _features(question, text)
            rows.append({"text": question, "pair": text, "label": label, "dense": dense, "categorical": categorical})
    return rows


def _features(question: str, solution: str) -> tuple[list[float], list[int]]:
    def found(pattern: str) -> tuple[set[str], set[str]]:
        asked, told = (set(re.findall(pattern, text)) for text in (question, solution))
        return asked, told

    share = lambda part, whole: len(part & whole) / len(part) if part else 0.5
    numbers, names, words = found(r"\d+(?:\.\d+)?"), found(r"\b[A-Z][a-z]+"), found(r"[a-z]{3,}")
    dense = [share(*numbers), share(*numbers[::-1]), share(*names[::-1]), share(*words)]
    dense.append(math.log(max(len(solution), 1) / max(len(question), 1)))
    kind = next((i for i, start in enumerate(_KINDS) if start in question.lower()), len(_KINDS))
    sentences = len(re.findall(r"[.!?](?:\s|$)", solution))
    return [round(number, 4) for number in dense], [kind, min(sentences, 7)]


def _write(folder: pathlib.Path, splits: dict[str, Rows]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        texts = [row[name] for row in splits["train"] for name in ("text", "pair") if name in row]
        bpe = tokenizers.ByteLevelBPETokenizer()
        bpe.train_from_iterator(texts, _VOCAB_SIZE, special_tokens=["<|endoftext|>"], show_progress=False)
        bpe.save(str(folder / "bpe.json"))
        for split, rows in splits.items():
            building = folder / f"{split}.jsonl.tmp"
            building.write_text("".join(json.dumps(row) + "\n" for row in rows))
            building.replace(folder / f"{split}.jsonl")
    except OSError as error:
        raise UserError(f"--output={str(folder)!r} cannot be written ({error.strerror}); name another") from None


def main() -> None:
    """Makes one folder of examples."""
    raw = pathlib.Path(_app.required(_RAW, "sentence_polarity.zip"))
    folder = pathlib.Path(_app.required(_OUTPUT, f"data/{_TASK.value}"))
    splits = {"quality": quality, "relevance": relevance}[_TASK.value](raw)
    _write(folder, splits)
    for split, rows in splits.items():
        print(f"{folder / split}.jsonl: {len(rows)} examples, {np.mean([row['label'] for row in rows]):.1%} of class 1")


if __name__ == "__main__":
    _app.run(main)
