"""JSON lines, with errors that name file, line and field."""

import gzip
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from matta_jax.errors import UserError


def read_text(path: pathlib.Path, what: str) -> str:
    """Returns the text of a file, unpacked where it ends in .gz. Raises UserError, with `what`
    asked for it.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except FileNotFoundError:
        raise UserError(
            f"{what}: {path} does not exist; check the path, from {pathlib.Path.cwd()}"
        ) from None
    except (OSError, EOFError) as error:
        raise UserError(f"{what}: {path} cannot be read ({error}); mend or remove it") from None
    return decode_utf8(data, str(path), what)


def decode_utf8(data: bytes, where: str, what: str) -> str:
    """Returns the text of bytes. Raises UserError, with `where` they lie and `what`
    asked for them.
    """
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{what}: {where} is not UTF-8 at byte {error.start}; convert it or leave it out"
        ) from None


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
        except (
            ValueError,
            RecursionError,
        ) as error:  # Also of numbers and nestings beyond what Python reads.
            why = getattr(error, "msg", str(error))
            raise UserError(
                f"{what}: {path} line {number} is not JSON ({why}); mend or remove it"
            ) from None
        if not isinstance(value, dict):
            raise UserError(
                f"{what}: {path} line {number} is {type(value).__name__}, and must be an object"
            )
        if "\\ud" in line or "\\uD" in line:
            _check_surrogates(value, f"{what}: {path} line {number}")
        yield number, value


def text_of(value: Mapping[str, Any], field: str, where: str, mend: str = "") -> str:
    """Returns the text in a field of a line's object. Raises UserError, which ends in how to `mend`
    it.
    """
    found = value.get(field)
    if isinstance(found, str):
        return found
    if field in value:
        raise UserError(
            f"{where}: {field}={shorten(found)} must be a text, not {type(found).__name__}"
        )
    raise UserError(
        f"{where} has no text field {field!r} (it has: {', '.join(value)}){mend and '; '}{mend}"
    )


def shorten(value: Any) -> str:
    """A value, as an error shows it."""
    shown = repr(value)
    return shown if len(shown) <= 60 else shown[:57] + "..."


def _check_surrogates(value: dict[str, Any], where: str) -> None:
    """Refuses escapes of half a character, which JSON allows and UTF-8 does not."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start : error.start + 1]
        raise UserError(
            f"{where} holds {half!a}, half a character of UTF-16; mend or remove it"
        ) from None


def file_fingerprint(path: pathlib.Path) -> str:
    """A hash of a file's bytes."""
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
