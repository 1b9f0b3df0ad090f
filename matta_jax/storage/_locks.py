"""Folders that one process at a time may write to."""

import contextlib
import errno
import fcntl
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from matta_jax.errors import UserError
from matta_jax.storage._files import read_json, replace_text
from matta_jax.storage._folders import remove_file
from matta_jax.storage._json import json_text
from matta_jax.storage._paths import Path, in_bucket

_LOCK = ".lock"
_OWNER = "owner.json"
"""Who writes to a folder, where there are no locks."""
_BEAT_SECONDS = 15.0
_SILENT_BEATS = 3
"""After so many a process counts as gone."""

# Of this process: who holds a folder may ask for it again, further in.
_held: set[Path] = set()


@contextlib.contextmanager
def locked(field: str, folder: Path) -> Iterator[None]:
    """Keeps other processes from writing to a folder, which is there, for the length of the block.

    Those of this machine by a lock, of which the system lets go when this process ends, however it
    ends. Those of other machines, and in buckets all, by a file that tells who writes, and is
    written again every 15 seconds: a process that was killed is silent, which the next one waits to
    see, for 45 seconds at most; of this machine it is asked at once.

    Args:
      field: which the user set, such as `workdir`.
      folder: an absolute path without links.

    Raises:
      UserError: another process holds it.
      OSError: the file of the lock, or of the owner, cannot be written.
    """
    if folder in _held:
        yield
        return
    with contextlib.ExitStack() as stack:
        if not in_bucket(folder):
            stack.enter_context(_locked_here(field, folder))
        stack.enter_context(_owned(field, folder))
        _held.add(folder)
        stack.callback(_held.discard, folder)
        yield


@contextlib.contextmanager
def _locked_here(field: str, folder: Path) -> Iterator[None]:
    """Keeps other processes of this machine out. A file system without locks keeps nobody out."""
    # Never removed: another process may wait at the same file.
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock(descriptor, field, folder)
        os.truncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
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


@contextlib.contextmanager
def _owned(field: str, folder: Path) -> Iterator[None]:
    """Keeps processes of other machines out, and of this one where there are no locks."""
    file = folder / _OWNER
    _wait_for_owner(field, file)
    about = {"host": socket.gethostname(), "process": os.getpid(), "token": secrets.token_hex(8)}
    ended = threading.Event()

    def beat() -> None:
        count = 0
        while not ended.wait(_BEAT_SECONDS):
            count += 1
            # A store that does not answer now may do so at the next beat.
            with contextlib.suppress(OSError):
                replace_text(file, json_text({**about, "beat": count}))

    replace_text(file, json_text({**about, "beat": 0}))
    heart = threading.Thread(target=beat, daemon=True)
    heart.start()
    try:
        yield
    finally:
        ended.set()
        heart.join()
        with contextlib.suppress(OSError):
            remove_file(file)


def owner_token(folder: Path) -> str:
    """What tells the owner of a folder from all before it; empty without one."""
    owner = _owner_of(folder / _OWNER) or {}
    return str(owner.get("token", ""))


def _wait_for_owner(field: str, file: Path) -> None:
    """Returns when no other process owns a folder; raises UserError while one does."""
    owner = _owner_of(file)
    if owner is None or _is_gone(owner):
        return
    deadline = time.monotonic() + _SILENT_BEATS * _BEAT_SECONDS
    while time.monotonic() < deadline:
        time.sleep(_BEAT_SECONDS / 5)
        latest = _owner_of(file)
        if latest is None:
            return
        if latest != owner:
            raise UserError(
                f"{field}={str(file.parent)!r} is in use by process {latest.get('process')} on "
                f"{latest.get('host')}; wait until it ends, or name another"
            )


def _owner_of(file: Path) -> dict[str, Any] | None:
    try:
        owner = read_json(file)
    except (OSError, ValueError):
        return None
    return owner if isinstance(owner, dict) else None


def _is_gone(owner: dict[str, Any]) -> bool:
    """Whether an owner was a process of this machine, and is none any more."""
    if owner.get("host") != socket.gethostname() or not isinstance(owner.get("process"), int):
        return False
    try:
        os.kill(owner["process"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return owner["process"] == os.getpid()
