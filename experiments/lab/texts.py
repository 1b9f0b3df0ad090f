"""The text of the ladder: novels and sources of the standard library, as many bytes of each."""

import pathlib
from collections.abc import Iterable, Iterator, Sequence

from lab.books import REPORTED_ON, TUNED_ON, json_lines, read_books, write_once
from matta_jax.data import Corpus, split_documents

KINDS = ("books", "stdlib")
_HELD_OUT = 0.04
"""Of the standard library: one half of it to tune on, the other to report."""
_CHARACTERS = 60_000
"""Of each held-out book, and of each side of the held-out library."""


def training_file(workdir: pathlib.Path) -> pathlib.Path:
    """What all runs read."""
    return workdir / "train.jsonl"


def held_out_file(workdir: pathlib.Path, kind: str, side: str) -> pathlib.Path:
    """The held-out text of a kind: of the side to tune on, or of that to report."""
    return workdir / f"{kind}_{side}.jsonl"


def tuning_file(workdir: pathlib.Path) -> pathlib.Path:
    """Both kinds of the side to tune on: what runs evaluate on as they go."""
    return workdir / f"{TUNED_ON}.jsonl"


def write_texts(data: pathlib.Path, workdir: pathlib.Path) -> None:
    """Writes all files. Raises UserError when the books cannot be read, or the folder cannot be
    written.
    """
    library = [document.text for document in _library(held_out=False)]
    num_bytes = sum(len(text.encode()) for text in library)
    books = list(_first_bytes(_training_books(data), num_bytes))
    texts = {training_file(workdir): [*library, *books]}

    # In turn, so that both sides have files of all packages.
    held_out = [document.text for document in _library(held_out=True)]
    for i, side in enumerate((TUNED_ON, REPORTED_ON)):
        sources = list(_first_bytes(held_out[i::2], 4 * _CHARACTERS))
        novels = [book[:_CHARACTERS] for book in read_books(data, f"{side}.jsonl.gz")]
        texts[held_out_file(workdir, "books", side)] = novels
        texts[held_out_file(workdir, "stdlib", side)] = sources
        if side == TUNED_ON:
            texts[tuning_file(workdir)] = [*novels, *sources]

    # Nothing is written before all is read: a folder with one side would look complete.
    for path, documents in texts.items():
        write_once(path, json_lines(documents))


def _library(*, held_out: bool) -> Iterator:
    return split_documents(Corpus("stdlib"), _HELD_OUT, held_out=held_out)


def _training_books(data: pathlib.Path) -> Iterator[str]:
    for shard in range(24):
        yield from read_books(data, f"train-{shard:05}-*.jsonl.gz")


def _first_bytes(texts: Iterable[str] | Sequence[str], count: int) -> Iterator[str]:
    """The first texts, of so many bytes; the last is cut."""
    for text in texts:
        encoded = text.encode()
        if len(encoded) >= count:
            yield encoded[:count].decode(errors="ignore")
            return
        count -= len(encoded)
        yield text
