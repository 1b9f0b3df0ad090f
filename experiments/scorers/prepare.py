"""Turns raw files that a user has fetched into examples of a scorer: one JSON object a line.

    python experiments/scorers/prepare.py --task=quality --raw=sentence_polarity.zip \\
        --output=data/quality
    python experiments/scorers/prepare.py --task=relevance --raw=gsm8k --output=data/relevance

quality: NLTK's `sentence_polarity.zip`; class 1 is a positive sentence. A tenth is in test.jsonl,
by a hash.

relevance: `train.jsonl` and `test.jsonl` of GSM8K. Each question stands beside its own solution
(class 1), and the other solution of its split that is most like the question by TF-IDF cosine
(class 0).

    dense (3, in [-2, 2])    TF-IDF cosine of question and solution
                             share of the solution's capitalised words that occur in the question
                             logarithm of the solution's length over the question's, clipped
    categorical (4 and 8)    kind of question: how many, how much, what, other
                             number of sentences of the solution, 7 for more

The numbers that both mention would tell the classes apart alone; they are left to the texts. A
share of nothing is 0.5. All IDFs are of training texts. `bpe.json` is a tokenizer of the training
texts. Needs: pip install 'matta_jax[scorers,tokenizers]'.
"""

import hashlib
import json
import math
import pathlib
import re
import zipfile
from typing import Any

import numpy as np
from absl import flags

from matta_jax.bin import required, run
from matta_jax.errors import UserError, did_you_mean
from matta_jax.storage import replace_text

_TASK = flags.DEFINE_string("task", None, "quality or relevance.")
_RAW = flags.DEFINE_string("raw", None, "The zip file of quality; the folder of relevance.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for train.jsonl, test.jsonl and bpe.json.")

_VOCAB_SIZE = 8192
_KINDS = ("how many", "how much", "what")
_MAX_SENTENCES = 7
_CLIP = 2.0

Rows = list[dict[str, Any]]
Pairs = list[tuple[str, str]]


def _hash(text: str) -> int:
    """Of the text alone, so that an example keeps its place and split when others come or go."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def quality(raw: pathlib.Path) -> dict[str, Rows]:
    """Returns each sentence once, with its polarity. Raises UserError when `raw` is no such zip
    file.
    """
    labels: dict[str, int] = {}
    try:
        with zipfile.ZipFile(raw) as archive:
            for label, end in ((1, "pos"), (0, "neg")):
                member = next(
                    (name for name in archive.namelist() if name.endswith(f"rt-polarity.{end}")),
                    None,
                )
                if member is None:
                    raise UserError(
                        f"raw={str(raw)!r} has no rt-polarity.{end}; give NLTK's "
                        "sentence_polarity.zip"
                    )
                for line in archive.read(member).decode("latin-1").split("\n"):
                    text = " ".join(line.split())
                    if text:
                        labels.setdefault(text, label)
    except (OSError, zipfile.BadZipFile) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(
            f"raw={str(raw)!r} must be a zip file ({why}); give NLTK's sentence_polarity.zip"
        ) from None
    splits: dict[str, Rows] = {"train": [], "test": []}
    for text in sorted(labels, key=_hash):
        split = "test" if _hash("split " + text) % 10 == 0 else "train"
        splits[split].append({"text": text, "label": labels[text]})
    return splits


def relevance(raw: pathlib.Path) -> dict[str, Rows]:
    """Returns pairs of a question and a solution. Raises UserError when `raw` is no folder of
    GSM8K.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    if not raw.is_dir():
        raise UserError(f"raw={str(raw)!r} must be a folder; give that of GSM8K's two files")
    pairs = {split: _read(raw, f"{split}.jsonl") for split in ("train", "test")}
    vectorizer = TfidfVectorizer().fit([text for pair in pairs["train"] for text in pair])
    return {split: _with_negatives(of_split, vectorizer) for split, of_split in pairs.items()}


def _read(raw: pathlib.Path, name: str) -> Pairs:
    try:
        lines = (raw / name).read_text(encoding="utf-8").split("\n")
        rows = [json.loads(line) for line in lines if line.strip()]
        pairs = []
        for row in rows:
            # Calculations between << and >>, and the bare answer at the end, are no prose.
            solution = re.sub(r"<<.*?>>|\n####.*", "", row["answer"]).strip()
            pairs.append((row["question"].strip(), solution))
    except FileNotFoundError:
        raise UserError(
            f"raw={str(raw)!r} has no {name}; give the folder of train.jsonl and test.jsonl"
        ) from None
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise UserError(
            f"raw={str(raw)!r}: {name} must have a question and an answer in each line ({why}); "
            "fetch GSM8K again"
        ) from None
    if len({solution for _, solution in pairs}) < 2:
        raise UserError(
            f"raw={str(raw)!r}: {name} must have two different solutions; fetch GSM8K again"
        )
    return pairs


def _with_negatives(pairs: Pairs, vectorizer: Any) -> Rows:
    questions = vectorizer.transform([question for question, _ in pairs])
    solutions = vectorizer.transform([solution for _, solution in pairs])
    rows: Rows = []
    for i in sorted(range(len(pairs)), key=lambda i: _hash(pairs[i][0])):
        question, solution = pairs[i]
        cosines = (solutions @ questions[i].T).toarray()[:, 0]
        by_cosine = np.argsort(-cosines, kind="stable")
        nearest = next(int(j) for j in by_cosine if pairs[j][1] != solution)
        for j, label in ((i, 1), (nearest, 0)):
            dense, categorical = _features(question, pairs[j][1], cosine=float(cosines[j]))
            features = {"dense": dense, "categorical": categorical}
            rows.append({"text": question, "pair": pairs[j][1], "label": label, **features})
    return rows


def _features(question: str, solution: str, *, cosine: float) -> tuple[list[float], list[int]]:
    question_names = set(re.findall(r"\b[A-Z][a-z]+", question))
    solution_names = set(re.findall(r"\b[A-Z][a-z]+", solution))
    shared_names = len(question_names & solution_names)
    share = shared_names / len(solution_names) if solution_names else 0.5

    ratio = math.log(max(len(solution), 1) / max(len(question), 1))
    dense = [cosine, share, min(max(ratio, -_CLIP), _CLIP)]

    kind = next((k for k, start in enumerate(_KINDS) if start in question.lower()), len(_KINDS))
    sentences = re.split(r"[.!?](?:\s|$)|\n", solution)
    num_sentences = sum(bool(sentence.strip()) for sentence in sentences)
    categorical = [kind, min(num_sentences, _MAX_SENTENCES)]
    return [round(number, 4) for number in dense], categorical


def write_examples(folder: pathlib.Path, splits: dict[str, Rows]) -> None:
    """Writes the examples of each split, and a tokenizer of the training texts. Raises UserError
    when it cannot.
    """
    import tokenizers

    bpe = tokenizers.ByteLevelBPETokenizer()
    texts = (row[name] for row in splits["train"] for name in ("text", "pair") if name in row)
    bpe.train_from_iterator(
        texts, _VOCAB_SIZE, special_tokens=["<|endoftext|>"], show_progress=False
    )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_text(folder / "bpe.json", bpe.to_str(pretty=True))
        for split, rows in splits.items():
            replace_text(folder / f"{split}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    except OSError as error:
        raise UserError(
            f"output={str(folder)!r} must be a writable folder ({error.strerror}); name another"
        ) from None


_TASKS = {"quality": quality, "relevance": relevance}


def make_examples(task: str, raw: pathlib.Path, output: pathlib.Path) -> dict[str, Rows]:
    """Writes and returns the examples of `quality` or `relevance`. Raises UserError
    when it cannot.
    """
    try:
        splits = _TASKS[task](raw)
        write_examples(output, splits)
    except ModuleNotFoundError as error:
        raise UserError(
            f"{task} needs the package {error.name}; pip install 'matta_jax[scorers,tokenizers]'"
        ) from None
    return splits


def main() -> None:
    """Makes one folder of examples."""
    task = required(_TASK, "quality")
    if task not in _TASKS:
        raise UserError(
            f"--task={task!r} must be one of {', '.join(_TASKS)}{did_you_mean(task, _TASKS)}"
        )
    raw = pathlib.Path(required(_RAW, "sentence_polarity.zip" if task == "quality" else "gsm8k"))
    output = pathlib.Path(required(_OUTPUT, f"data/{task}"))
    for split, rows in make_examples(task, raw, output).items():
        print(
            f"{output / split}.jsonl: {len(rows)} examples, "
            f"{np.mean([row['label'] for row in rows]):.1%} of class 1"
        )


if __name__ == "__main__":
    run(main)
