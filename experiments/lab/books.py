"""The text of the laptop's runs: novels to train on, and excerpts of held-out ones."""

import gzip
import json
import pathlib
import zlib
from collections.abc import Iterable, Iterator

from matta_jax.errors import UserError
from matta_jax.storage import replace_text

TUNED_ON, REPORTED_ON = "validation", "test"
_CHARACTERS = 60_000  # Of each held-out book: enough for these models, and read within seconds.


def excerpt(workdir: pathlib.Path, side: str) -> pathlib.Path:
    """The file of the first characters of each held-out book of a side."""
    return workdir / f"{side}.jsonl"


def write_excerpts(data: pathlib.Path, workdir: pathlib.Path) -> None:
    """Writes the excerpts of both sides. Raises UserError when the books cannot be read, or the
    folder cannot be written.
    """
    texts = {}
    for side in (TUNED_ON, REPORTED_ON):
        books = read_books(data, f"{side}.jsonl.gz")
        texts[side] = json_lines(book[:_CHARACTERS] for book in books)

    # Nothing is written before all is read: a folder with one side would look complete.
    for side, text in texts.items():
        write_once(excerpt(workdir, side), text)


def read_books(data: pathlib.Path, name: str) -> Iterator[str]:
    """Yields the texts of one of `data`'s files of books. Raises UserError when there is none, or
    it is damaged.
    """
    file = next(iter(sorted((data / "books").glob(name))), None)
    if file is None:
        raise UserError(
            f"--data_dir={str(data)!r} has no books/{name}; name the folder that has books/ and "
            "bpe/"
        )

    try:
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)["text"]
    except (OSError, EOFError, ValueError, KeyError, zlib.error) as error:
        raise UserError(
            f"{file} is damaged ({type(error).__name__}: {error}); fetch it again"
        ) from None


def json_lines(texts: Iterable[str]) -> str:
    """A file of texts, as `text:` sources read it."""
    return "".join(json.dumps({"text": text}) + "\n" for text in texts)


def write_once(path: pathlib.Path, text: str) -> None:
    """Writes a file unless it holds this text already: processes that share a workdir all call
    this. Raises UserError when it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            replace_text(path, text)
    except OSError as error:
        raise UserError(
            f"--workdir={str(path.parent)!r} cannot be written ({error.strerror}); name another"
        ) from None
