"""Where things lie: what a user names becomes a path, and a path what a library asks for."""

import pathlib
from typing import Any

from matta_jax.errors import UserError

Path = pathlib.Path

# As pathlib writes an address that was a path for a moment: it merges the two slashes.
_MERGED_SCHEMES = ("gs:/", "s3:/")


def path(where: str | Path) -> Path:
    """Returns a path as it was named, relative to the working folder or absolute.

    Raises:
      UserError: an address such as gs://bucket/run, of which a local path would silently make a
        folder called `gs:`.
    """
    text = str(where)
    if "://" in text or text.startswith(_MERGED_SCHEMES):
        raise UserError(
            f"{text!r} is an address, and buckets are not supported; name a local folder (a bucket "
            "that is mounted, such as under /gcs, is one)"
        )
    return pathlib.Path(where)


def resolve(where: str | Path) -> Path:
    """Returns an absolute path without links. Raises UserError as `path` does."""
    return path(where).resolve()


def working_folder() -> Path:
    """The folder that relative paths start from."""
    return pathlib.Path.cwd()


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
