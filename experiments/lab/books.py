"""Novels, and the files that experiments make of them."""

import gzip
import json
import pathlib
import zlib
from collections.abc import Iterable, Iterator

from matta_jax.errors import UserError
from matta_jax.storage import replace_text

TUNED_ON, REPORTED_ON = "validation", "test"


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
