"""Single files: read, replaced as a whole, or grown line by line."""

import contextlib
import errno
import io
import os
import shutil
from collections.abc import Iterator
from typing import Any, BinaryIO

from matta_jax import stops
from matta_jax.storage._buckets import BucketPath, new_local_folder
from matta_jax.storage._json import parse_json
from matta_jax.storage._paths import Path, in_bucket

# Of a new file, from which the user's umask takes what it forbids.
_NEW_FILE = 0o666


def read_bytes(path: Path) -> bytes:
    """Returns the bytes of a file. Raises OSError."""
    return path.read() if in_bucket(path) else path.read_bytes()


def read_piece(path: Path, start: int, stop: int) -> bytes:
    """Returns bytes `start` to `stop` of a file, of a bucket's object after it is read whole.
    Raises OSError.
    """
    with open_old(path) as file:
        file.seek(start)
        return file.read(stop - start)


def num_bytes(path: Path) -> int:
    """How many bytes a file has. Raises OSError."""
    return path.num_bytes() if in_bucket(path) else path.stat().st_size


def in_memory(data: bytes) -> BinaryIO:
    """Bytes that were read as a file, for libraries that take one."""
    return io.BytesIO(data)


def read_text(path: Path) -> str:
    """Returns the text of a UTF-8 file, without the mark that some editors begin it with. Raises
    OSError, or UnicodeDecodeError, a ValueError.
    """
    return read_bytes(path).decode("utf-8-sig")


def read_json(path: Path) -> Any:
    """Returns the value of a JSON file. Raises OSError, of a device or a pipe too, or ValueError as
    `parse_json` does.
    """
    # A link in a folder from elsewhere may name a device that never ends.
    is_endless = path.exists() and not path.is_file() and not path.is_dir()
    if is_endless:
        raise OSError(errno.EINVAL, "it is a device or a pipe", str(path))
    return parse_json(read_text(path))


@contextlib.contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yields a path beside `path` to write to; what is there at the end takes the place of `path`.

    A failure leaves the old file alone. A killed process leaves that or the new one, and at most a
    `.tmp` beside it, which the next writer replaces. What goes to a bucket is written on the local
    disk first.

    Raises:
      OSError: it cannot be moved to its place.
    """
    if in_bucket(path):
        with _new_object(path) as local:
            yield local
        return
    beside = path.with_name(path.name + ".tmp")
    try:
        with stops.unfinished():
            yield beside
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def _new_object(path: BucketPath) -> Iterator[Path]:
    folder = Path(new_local_folder())
    try:
        with stops.unfinished():
            yield folder / path.name
            path.upload(folder / path.name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def replace_text(path: Path, text: str) -> None:
    """Writes a UTF-8 file as a whole. A crash leaves what it does in `new_file`. Raises OSError."""
    if in_bucket(path):
        path.write(text.encode())
        return
    with new_file(path) as beside:
        beside.write_text(text, encoding="utf-8")


def open_new(path: Path) -> BinaryIO:
    """Opens a file to write bytes to, piece by piece. A crash leaves part of it, so it lies in a
    folder that is still being built. Raises OSError.
    """
    return path.open("wb")


def open_old(path: Path) -> BinaryIO:
    """Opens a file to read bytes from, for a library that reads a file piece by piece. Raises
    OSError.
    """
    return in_memory(path.read()) if in_bucket(path) else path.open("rb")


def append_line(path: Path, line: str) -> None:
    """Adds a line to a file, which is made where there is none.

    A crash leaves the lines before it, and at most a part of this one, without its end of line:
    `recover_lines` takes that off. Objects do not grow: in a bucket all lines are written again.

    Raises:
      OSError: it cannot be written.
    """
    if in_bucket(path):
        try:
            lines = path.read()
        except FileNotFoundError:
            lines = b""
        path.write(lines + f"{line}\n".encode())
        return
    with path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def recover_lines(path: Path) -> list[str]:
    """Returns the whole lines of a file that `append_line` wrote; none where there is no file.

    A last line without its end is what a killed process wrote of it: it is cut off, in the file
    too, so that the next line does not go on from it.

    Raises:
      OSError: the file cannot be read, or not be mended.
    """
    if not path.is_file():
        return []

    text = read_text(path)
    if text and not text.endswith("\n"):
        text = text[: text.rfind("\n") + 1]
        replace_text(path, text)

    return text.splitlines()


def copy_file(source: Path, target: Path) -> None:
    """Copies the content of a file. A crash leaves part of it, so `target` lies in a folder that is
    still being built. Raises OSError.
    """
    if in_bucket(source) and in_bucket(target):
        target.write(source.read())
    elif in_bucket(source):
        source.download(target)
    elif in_bucket(target):
        target.upload(source)
    else:
        shutil.copyfile(source, target)


def share_file(path: Path) -> None:
    """Gives a file of a library that writes for its owner alone the permissions of any new file.
    Raises OSError.
    """
    if not in_bucket(path):
        path.chmod(_NEW_FILE & ~umask())


def umask() -> int:
    """The permissions that the user takes from new files and folders."""
    # It can only be read by setting it.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
