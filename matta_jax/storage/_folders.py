"""Folders: made, listed, and put in their place as a whole."""

import contextlib
import errno
import fnmatch
import glob as glob_module
import os
import pathlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from typing import cast

from matta_jax import stops
from matta_jax.storage._buckets import BucketPath, new_local_folder
from matta_jax.storage._files import copy_file, umask
from matta_jax.storage._paths import Path, in_bucket, path

# Of a new folder, from which the user's umask takes what it forbids.
_NEW_FOLDER = 0o777

# As far as anybody can tell, of a bucket.
_BOUNDLESS = 2**63

# Threads that still write into a folder stop within so many pauses of so many seconds.
_REMOVALS = 20
_SETTLE_SECONDS = 0.05


def make_folder(folder: Path) -> None:
    """Makes a folder, and those above it, where they are not there; in a bucket there are folders
    but in names. Raises OSError.
    """
    if in_bucket(folder):
        # A bucket would take both, and readers would find the one or the other.
        for place in (folder, *folder.parents[:-1]):
            if place.is_file():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place))
        return
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
    if in_bucket(expanded):
        return _matches_in_bucket(expanded)
    names = glob_module.glob(str(_literal_where_there(expanded)), recursive=True)
    return sorted(pathlib.Path(name) for name in names)


def _matches_in_bucket(pattern: BucketPath) -> list[Path]:
    # What an object's name has of brackets means itself.
    if pattern.exists():
        return [cast(Path, pattern)]
    bucket = pattern.parents[-1]
    return cast(list[Path], bucket.glob_below(pattern.key)) if pattern.key else []


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
    if in_bucket(folder):
        if "/" in pattern or "**" in pattern:
            return cast(list[Path], folder.glob_below(pattern))
        names = [child for child in folder.children() if fnmatch.fnmatchcase(child.name, pattern)]
        return cast(list[Path], names)
    return sorted(folder.glob(pattern))


@contextlib.contextmanager
def new_folder(
    target: Path, *, keep_first: bool = False, private: bool = False, last: str | None = None
) -> Iterator[Path]:
    """Yields an empty folder beside `target` that takes its place at the end.

    It is removed when the end is not reached. A killed process leaves it, hidden behind a dot, and
    what was at `target` before. A process that is killed while it replaces an old folder may leave
    that as `.NAME….old`, and nothing at `target`.

    Args:
      target: the folder to come; those above it are made.
      keep_first: another process may build the same. The first that ends stays, and a failure does
        not count when it is there. Otherwise the last that ends stays.
      private: for its owner alone; otherwise it has the permissions of any new folder.
      last: the file without which readers take the folder for none. In a bucket, where nothing can
        be moved, a folder is built on the local disk and this file is written last.

    Raises:
      OSError: it cannot be written.
    """
    if in_bucket(target):
        folder = _new_in_bucket(target, keep_first=keep_first, last=last)
    else:
        folder = _new_local(target, keep_first=keep_first, private=private)
    with folder as building:
        yield building


@contextlib.contextmanager
def _new_local(target: Path, *, keep_first: bool, private: bool) -> Iterator[Path]:
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


@contextlib.contextmanager
def _new_in_bucket(target: BucketPath, *, keep_first: bool, last: str | None) -> Iterator[Path]:
    building = pathlib.Path(new_local_folder())
    marker = target / last if last is not None else target
    try:
        with stops.unfinished():
            yield building
            if keep_first and marker.exists():
                return
            _upload(building, target, last)
    finally:
        remove_folder(building)


def _upload(building: Path, target: BucketPath, last: str | None) -> None:
    """Writes all files of a local folder to a bucket, in the place of what was there."""
    files = [file for file in sorted(building.rglob("*")) if file.is_file()]
    # Readers that look while a folder is replaced find none.
    if last is not None:
        (target / last).remove()
    target.remove()
    try:
        for file in sorted(files, key=lambda file: file == building / str(last)):
            (target / file.relative_to(building).as_posix()).upload(file)
    except BaseException:
        with contextlib.suppress(OSError):
            target.remove()
        raise


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yields an empty folder on the local disk, which is removed at the end. Raises OSError."""
    folder = pathlib.Path(new_local_folder())
    try:
        yield folder
    finally:
        remove_folder(folder)


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


@contextlib.contextmanager
def grown_folder(folder: Path) -> Iterator[Path]:
    """Yields a folder for a library whose files grow: this one; or of a bucket, whose objects do
    not, a local one, from which `publish_files` writes them.
    """
    if not in_bucket(folder):
        yield folder
        return
    local = pathlib.Path(new_local_folder())
    try:
        yield local
    finally:
        remove_folder(local)


def publish_files(local: Path, folder: Path) -> None:
    """Writes the files of `grown_folder` to their place, as they are now. Raises OSError."""
    if not in_bucket(folder):
        return
    for file in local.rglob("*"):
        if file.is_file():
            (folder / file.relative_to(local).as_posix()).upload(file)


def free_bytes(folder: Path) -> int:
    """The bytes that the user may still write on the disk of a folder, which need not be there.
    Raises OSError.
    """
    if in_bucket(folder):
        return _BOUNDLESS
    there = next(place for place in (folder, *folder.parents) if place.exists())
    return shutil.disk_usage(there).free


def move_folder(source: Path, target: Path) -> None:
    """Moves a folder to a place that is free, on the same disk. A crash leaves it at one of the
    two, or in a bucket part of it at both. Raises OSError.
    """
    if in_bucket(source):
        for file in source.glob_below("**"):
            if file.is_file():
                copy_file(cast(Path, file), target / str(file)[len(f"{source}/") :])
        source.remove()
        return
    os.rename(source, target)


def remove_file(file: Path) -> None:
    """Removes a file, where it is there. Raises OSError."""
    if in_bucket(file):
        file.remove()
    else:
        file.unlink(missing_ok=True)


def remove_folder(folder: Path) -> None:
    """Removes a folder and all in it, as far as the system lets it; also what threads of a library
    that was broken off still write there.
    """
    if in_bucket(folder):
        with contextlib.suppress(OSError):
            folder.remove()
        return
    for _ in range(_REMOVALS):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(_SETTLE_SECONDS)
