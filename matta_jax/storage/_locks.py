"""Folders that one process at a time may write to."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator

from matta_jax.errors import UserError
from matta_jax.storage._paths import Path, in_bucket

_LOCK = ".lock"

# Of this process: who holds a folder may ask for it again, further in.
_held: set[Path] = set()


@contextlib.contextmanager
def locked(field: str, folder: Path) -> Iterator[None]:
    """Keeps other processes from writing to a folder, which is there, for the length of the block.

    The system lets go of it when this process ends, however it ends. A file system without locks
    keeps nobody out.

    Args:
      field: which the user set, such as `workdir`.
      folder: an absolute path without links.

    Raises:
      UserError: another process holds it.
      OSError: the file of the lock cannot be made.
    """
    # A bucket has none either.
    if folder in _held or in_bucket(folder):
        yield
        return

    # Never removed: another process may wait at the same file.
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock(descriptor, field, folder)
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        _held.add(folder)
        yield
    finally:
        _held.discard(folder)
        os.close(descriptor)


def _lock(descriptor: int, field: str, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            return
        holder = os.read(descriptor, 20).decode(errors="replace").strip()
        raise UserError(
            f"{field}={str(folder)!r} is in use by process {holder or 'unknown'}; wait until it "
            "ends, or name another"
        ) from None
