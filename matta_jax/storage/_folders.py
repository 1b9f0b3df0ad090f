"""Folders: made, listed, and put in their place as a whole."""

import contextlib
import errno
import glob as glob_module
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterator

from matta_jax import stops
from matta_jax.storage._files import umask
from matta_jax.storage._paths import Path, path

# Of a new folder, from which the user's umask takes what it forbids.
_NEW_FOLDER = 0o777

# Threads that still write into a folder stop within so many pauses of so many seconds.
_REMOVALS = 20
_SETTLE_SECONDS = 0.05


def make_folder(folder: Path) -> None:
    """Makes a folder, and those above it, where they are not there. Raises OSError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        # A file has the place of it; that something is there is not what is wrong.
        raise NotADirectoryError(
            errno.ENOTDIR, os.strerror(errno.ENOTDIR), error.filename
        ) from None


def glob(pattern: str) -> list[Path]:
    """Returns what a user's pattern matches, sorted; `**` goes down any number of folders. Brackets
    of a folder or file that is there by this very name have no meaning. Raises UserError as `path`
    does.
    """
    # Refuses an address, and what the file system cannot look at.
    expanded = path(pattern)
    names = glob_module.glob(str(_literal_where_there(expanded)), recursive=True)
    return sorted(pathlib.Path(name) for name in names)


def _literal_where_there(pattern: Path) -> Path:
    """A pattern in which the names that are there as they stand match themselves alone."""
    literal = pathlib.Path()
    escaped = pathlib.Path()
    for part in pattern.parts:
        literal = literal / part
        # A pattern of stars that is a name as well still means all that it matches.
        is_there = "[" in part and literal.exists()
        escaped = escaped / (glob_module.escape(part) if is_there else part)
    return escaped


def match(folder: Path, pattern: str) -> list[Path]:
    """Returns what a pattern matches within a folder, sorted; nothing where there is no folder."""
    return sorted(folder.glob(pattern))


@contextlib.contextmanager
def new_folder(target: Path, *, keep_first: bool = False, private: bool = False) -> Iterator[Path]:
    """Yields an empty folder beside `target` that takes its place at the end.

    It is removed when the end is not reached. A killed process leaves it, hidden behind a dot, and
    what was at `target` before. A process that is killed while it replaces an old folder may leave
    that as `.NAME….old`, and nothing at `target`.

    Args:
      target: the folder to come; those above it are made.
      keep_first: another process may build the same. The first that ends stays, and a failure does
        not count when it is there. Otherwise the last that ends stays.
      private: for its owner alone; otherwise it has the permissions of any new folder.

    Raises:
      OSError: it cannot be written.
    """
    building = None
    missing_parents = [parent for parent in target.parents if not parent.exists()]
    is_whole = False
    try:
        make_folder(target.parent)
        building = pathlib.Path(
            tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
        )
        with stops.unfinished():
            yield building

        # As it is made, only its owner may read it.
        if not private:
            building.chmod(_NEW_FOLDER & ~umask())
        if keep_first:
            os.rename(building, target)
        else:
            _exchange(building, target)
        is_whole = True
    except OSError:
        if not (keep_first and building is not None and target.exists()):
            raise
    except Exception:
        raise
    except BaseException:
        # A signal breaks a library off between its threads, which make their files yet.
        if building is not None:
            remove_folder(building)
            time.sleep(_SETTLE_SECONDS)
        raise
    finally:
        if building is not None:
            remove_folder(building)
        if not is_whole:
            _remove_empty(missing_parents)


def _remove_empty(folders: list[Path]) -> None:
    """Removes folders that were made, the innermost first, where nobody has put anything there."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _exchange(building: Path, target: Path) -> None:
    """Puts a folder in the place of another; what was there goes last, and comes back when that
    fails.
    """
    if not target.exists():
        os.rename(building, target)
        return

    old = building.with_name(building.name + ".old")
    os.rename(target, old)
    try:
        os.rename(building, target)
    except BaseException:
        os.rename(old, target)
        raise

    shutil.rmtree(old, ignore_errors=True)


def free_bytes(folder: Path) -> int:
    """The bytes that the user may still write on the disk of a folder, which need not be there.
    Raises OSError.
    """
    there = next(place for place in (folder, *folder.parents) if place.exists())
    return shutil.disk_usage(there).free


def move_folder(source: Path, target: Path) -> None:
    """Moves a folder to a place that is free, on the same disk. A crash leaves it at one of the
    two. Raises OSError.
    """
    os.rename(source, target)


def remove_folder(folder: Path) -> None:
    """Removes a folder and all in it, as far as the system lets it; also what threads of a library
    that was broken off still write there.
    """
    for _ in range(_REMOVALS):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(_SETTLE_SECONDS)


def copy_folder(source: Path, target: Path) -> None:
    """Copies a folder and all in it. A crash leaves part of it, so `target` lies in a folder that
    is still being built. Raises OSError.
    """
    shutil.copytree(source, target)
