"""Where things lie: what a user names becomes a path, and a path what a library asks for."""

import os
import pathlib
import re
from typing import Any

from matta_jax.errors import UserError

Path = pathlib.Path

# An address: `gs://bucket`; or as pathlib writes one that was a path for a moment: it merges the
# two slashes. One letter alone would be a drive.
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def path(where: str | Path) -> Path:
    """Returns a path as it was named, relative to the working folder or absolute; `~` is the home
    of a user. This is the one place that looks at what a user named: after it, `exists()` and the
    like raise nothing.

    Raises:
      UserError: an address such as gs://bucket/run, of which a local path would silently make a
        folder called `gs:`; or a path that the file system cannot look at: too long, a loop of
        links, without permission, or relative to a folder that is gone.
    """
    text = str(where)
    if _ADDRESS.match(text):
        raise UserError(
            f"{text!r} is an address, and buckets are not supported; name a local folder (a bucket "
            "that is mounted, such as under /gcs, is one)"
        )

    expanded = _expanded(text)
    _check_working_folder(text, expanded)
    try:
        # Follows links, where `exists` would pass over what it cannot look at.
        os.stat(expanded)
    except (FileNotFoundError, NotADirectoryError):
        # Yet to be written, or told by who reads or writes it, with the field.
        pass
    except (OSError, ValueError) as error:
        # A ValueError tells of a NUL.
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"{_shown(text)} cannot be used ({reason}); name another path") from None
    else:
        _check_readable(text, expanded)
    return expanded


def _expanded(text: str) -> Path:
    if not text.startswith("~"):
        return pathlib.Path(text)
    try:
        return pathlib.Path(text).expanduser()
    except RuntimeError:
        raise UserError(f"{_shown(text)} names the home of no user; write the path out") from None


def _check_working_folder(text: str, expanded: Path) -> None:
    if expanded.is_absolute():
        return
    try:
        pathlib.Path.cwd()
    except FileNotFoundError:
        raise UserError(
            f"{_shown(text)} is relative to the working folder, which was removed; change to one "
            "that exists"
        ) from None


def _check_readable(text: str, expanded: Path) -> None:
    needed = os.R_OK | os.X_OK if expanded.is_dir() else os.R_OK
    if not os.access(expanded, needed):
        raise UserError(
            f"{_shown(text)} cannot be read (Permission denied); allow it, or name another"
        )


def _shown(text: str) -> str:
    """A path as an error shows it: one that is too long is why there is an error."""
    shown = repr(text)
    return shown if len(shown) <= 120 else shown[:80] + "…" + shown[-20:]


def resolve(where: str | Path) -> Path:
    """Returns an absolute path without links. Raises UserError as `path` does."""
    return path(where).resolve()


def working_folder() -> Path:
    """The folder that relative paths start from. Raises UserError where it was removed."""
    try:
        return pathlib.Path.cwd()
    except FileNotFoundError:
        raise UserError("the working folder was removed; change to one that exists") from None


def home_cache() -> Path:
    """The folder in the user's home for what can be made again."""
    return pathlib.Path.home() / ".cache" / "matta_jax"


def local_copy(where: Path) -> Path:
    """Returns a local path with the content of `where`, for libraries that map a file to memory or
    open it by name.
    """
    return where


def kvstore(folder: Path) -> dict[str, Any]:
    """Returns the tensorstore specification of a folder, for reading arrays in it."""
    # A specification and not a URL, in which `?`, `#` and `%` of a path would have a meaning.
    return {"driver": "file", "path": f"{folder}/"}
