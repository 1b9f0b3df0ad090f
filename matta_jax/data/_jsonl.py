"""JSON lines, with errors that name file, line and field."""

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from matta_jax import storage
from matta_jax.errors import UserError, shorten


def read_data(path: storage.Path, what: str, within: tuple[int, int] | None = None) -> bytes:
    """Returns the bytes of a file, or those `within` start and stop. Raises UserError, with `what`
    asked for it.
    """
    try:
        return storage.read_bytes(path) if within is None else storage.read_piece(path, *within)
    except FileNotFoundError:
        raise UserError(
            f"{what}: {path} does not exist; check the path, from {storage.working_folder()}"
        ) from None
    except OSError as error:
        raise UserError(f"{what}: {path} cannot be read ({error}); mend or remove it") from None


def read_text(path: storage.Path, what: str, within: tuple[int, int] | None = None) -> str:
    """Returns the text of a file, unpacked where it ends in .gz or .zst.

    Args:
      path: of the file.
      what: asked for it, as errors say it.
      within: start and stop of the bytes to read, of one that is not packed; None: all.

    Raises:
      UserError: it cannot be read, or is no UTF-8.
    """
    data = read_data(path, what, within)
    if path.suffix == ".zst":
        data = _unpacked_zst(data, path, what)
    if path.suffix == ".gz":
        try:
            data = gzip.decompress(data)
        # By where the damage is: in the frame, at the end, in what is packed.
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(
                f"{what}: {path} cannot be read as gzip ({error}); mend or remove it"
            ) from None
    return decode_utf8(data, str(path), what)


def _unpacked_zst(data: bytes, path: storage.Path, what: str) -> bytes:
    try:
        import zstandard
    except ImportError:
        raise UserError(
            f"{what}: {path} needs the package zstandard: pip install 'matta_jax[corpora]'"
        ) from None
    parts = []
    reason = None
    # Of any number of frames: each tells by itself whether it came to its end.
    while data and reason is None:
        frame = zstandard.ZstdDecompressor().decompressobj()
        try:
            parts.append(frame.decompress(data))
            data = frame.unused_data
            reason = None if frame.eof else "it is cut"
        except zstandard.ZstdError as error:
            reason = str(error)
    if reason is not None:
        raise UserError(f"{what}: {path} cannot be read as zstd ({reason}); mend or remove it")
    return b"".join(parts)


def decode_utf8(data: bytes, where: str, what: str) -> str:
    """Returns the text of bytes, without the mark that some editors begin a file with. Raises
    UserError, with `where` they lie and `what` asked for them.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{what}: {where} is not UTF-8 at byte {error.start}; convert it or leave it out"
        ) from None


def read_json_lines(
    path: storage.Path, what: str, form: str = "", within: tuple[int, int] | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the number and the object of each line that is not blank.

    Args:
      path: a file of JSON lines, packed or not.
      what: asked for it, as errors say it.
      form: of a line, as errors say it.
      within: start and stop of the bytes of whole lines; None: all. Lines are counted from start.

    Raises:
      UserError: the file cannot be read, or a line is no JSON object.
    """
    ending = f"; it must be {form}" if form else ""
    for number, line in enumerate(read_text(path, what, within).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            value = storage.parse_json(line)
        # Also of numbers and nestings beyond what Python reads.
        except (ValueError, RecursionError) as error:
            reason = getattr(error, "msg", str(error))
            raise UserError(
                f"{what}: {path} line {number} is not JSON ({reason}); mend or remove it{ending}"
            ) from None

        if not isinstance(value, dict):
            raise UserError(
                f"{what}: {path} line {number} is {type(value).__name__}, and must be an object"
                f"{ending}"
            )
        # Most lines hold no escape that could be half a character, and are not written again.
        if "\\ud" in line or "\\uD" in line:
            _check_surrogates(value, f"{what}: {path} line {number}")
        yield number, value


def text_of(value: Mapping[str, Any], field: str, where: str, mend: str = "") -> str:
    """Returns the text in a field of a line's object. Raises UserError, which ends in how to `mend`
    it.
    """
    text = value.get(field)
    if isinstance(text, str):
        return text
    if field in value:
        raise UserError(
            f"{where}: {field}={shorten(text)} must be a text, not {type(text).__name__}"
        )

    ending = f"; {mend}" if mend else ""
    raise UserError(f"{where} has no text field {field!r} (it has: {', '.join(value)}){ending}")


def _check_surrogates(value: dict[str, Any], where: str) -> None:
    """Refuses escapes of half a character, which JSON allows and UTF-8 does not."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start : error.start + 1]
        raise UserError(
            f"{where} holds {half!a}, half a character of UTF-16; mend or remove it"
        ) from None
    except RecursionError:
        raise UserError(f"{where} is nested too deep; mend or remove it") from None


def file_fingerprint(path: storage.Path) -> str:
    """A hash of a file's bytes."""
    return hashlib.blake2b(storage.read_bytes(path), digest_size=16).hexdigest()
