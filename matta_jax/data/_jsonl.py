"""JSON lines, with errors that name file, line and field."""

import gzip
import hashlib
import json
import pathlib
from collections.abc import Iterator
from typing import Any

from matta_jax.errors import UserError


def read_text(path: pathlib.Path, what: str) -> str:
    """Returns the text of a file, unpacked where it ends in .gz. Raises UserError, with `what` asked for it."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError) as error:
        raise UserError(f"{what}: {path} cannot be read ({error}); mend or remove it") from None
    return decode_utf8(data, str(path), what)


def decode_utf8(data: bytes, where: str, what: str) -> str:
    """Returns the text of bytes. Raises UserError, with `where` they lie and `what` asked for them."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{what}: {where} is not UTF-8 at byte {error.start}; convert it or leave it out") from None


def read_json_lines(path: pathlib.Path, what: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the number and the object of each line that is not blank.

    Args:
      path: a .jsonl or .jsonl.gz file.
      what: asked for it, as errors say it.

    Raises:
      UserError: the file cannot be read, or a line is no JSON object.
    """
    for number, line in enumerate(read_text(path, what).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{what}: {path} line {number} is not JSON ({error.msg})") from None
        if not isinstance(value, dict):
            raise UserError(f"{what}: {path} line {number} is {type(value).__name__}, and must be an object")
        yield number, value


def file_fingerprint(path: pathlib.Path) -> str:
    """A hash of a file's bytes."""
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
