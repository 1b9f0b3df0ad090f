"""Where things lie: what a user names becomes a path, and a path what a library asks for."""

import contextlib
import functools
import hashlib
import os
import pathlib
import re
import shutil
import time
from typing import Any, TypeGuard, cast

from matta_jax.errors import UserError, did_you_mean
from matta_jax.storage._buckets import EXTRAS, BucketPath, bucket_path

Path = pathlib.Path
"""Of what is local; what lies in a bucket is a `BucketPath`, with the methods that rooms use."""

_SECONDS_UNUSED = 30 * 24 * 3600.0
"""After which a copy of an object is removed."""

# An address: `gs://bucket`; or as pathlib writes one that was a path for a moment: it merges the
# two slashes. One letter alone would be a drive.
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)


def path(where: str | Path) -> Path:
    """Returns a path as it was named, relative to the working folder or absolute; `~` is the home
    of a user. This is the one place that looks at what a user named: after it, `exists()` and the
    like raise nothing.

    Raises:
      UserError: an address of no bucket, or of one that is not there or whose package is not
        installed; or a path that the file system cannot look at: too long, a loop of links, without
        permission, or relative to a folder that is gone.
    """
    text = os.fspath(where)
    address = _ADDRESS.fullmatch(text)
    if address is not None:
        # Other rooms take it for a path, of which they only use what both have.
        return cast(Path, _bucket_path(text, *address.groups()))

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


def in_bucket(where: Any) -> TypeGuard[BucketPath]:
    """Whether a path lies in a bucket."""
    return isinstance(where, BucketPath)


def _bucket_path(text: str, scheme: str, rest_of_address: str) -> BucketPath:
    if scheme not in EXTRAS:
        raise UserError(
            f"{text!r} is an address of an unknown kind; name a local path, or one of "
            f"{', '.join(f'{known_scheme}://BUCKET/…' for known_scheme in EXTRAS)}"
            f"{did_you_mean(scheme, EXTRAS)}"
        )
    parts = [part for part in rest_of_address.split("/") if part]
    if not parts:
        raise UserError(f"{text!r} names no bucket; write {scheme}://BUCKET/…")
    if {".", ".."} & {*parts}:
        raise UserError(f"{text!r} has a part that a bucket takes for a name; leave out . and ..")
    _check_bucket(scheme, parts[0])
    return bucket_path(f"{scheme}://{'/'.join(parts)}")


@functools.cache
def _check_bucket(scheme: str, bucket: str) -> None:
    """Raises UserError for a bucket that is not there or cannot be reached."""
    bucket_path(f"{scheme}://{bucket}").check()


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


def leads_out(file: Path, folder: Path) -> bool:
    """Whether a file of a folder is a link to what lies outside of it. In the cache of Hugging
    Face's hub all files are links, to the `blobs` of their model: these lead nowhere else.
    """
    if in_bucket(file):
        return False
    place, target = folder.resolve(), file.resolve()
    is_snapshot = place.parent.name == "snapshots"
    blobs = place.parent.parent / "blobs"
    return not (target.is_relative_to(place) or (is_snapshot and target.is_relative_to(blobs)))


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
    open it by name. Of an object it is kept in the user's cache, until the object changes, or until
    nobody has asked for it in 30 days.

    Raises:
      OSError: it cannot be read, or not be copied.
    """
    if not in_bucket(where):
        return where
    told = f"{where} {where.version()}"
    folder = home_cache() / "buckets" / hashlib.blake2b(told.encode(), digest_size=16).hexdigest()
    copy = folder / where.name
    if not copy.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        # Each process by itself; the last that ends stays.
        building = folder / f".{where.name}.{os.getpid()}.tmp"
        try:
            where.download(building)
            os.replace(building, copy)
        finally:
            building.unlink(missing_ok=True)
        _remove_unused(folder.parent)
    # Tells that it is in use.
    os.utime(folder)
    return copy


def _remove_unused(cache: Path) -> None:
    """Removes the copies that nobody has asked for in a long time."""
    last = time.time() - _SECONDS_UNUSED
    for folder in cache.iterdir():
        # Another process may do the same.
        with contextlib.suppress(OSError):
            if folder.stat().st_mtime < last:
                shutil.rmtree(folder)


def kvstore(folder: Path) -> dict[str, Any]:
    """Returns the tensorstore specification of a folder, for reading arrays in it."""
    # A specification and not a URL, in which `?`, `#` and `%` of a path would have a meaning.
    if not in_bucket(folder):
        return {"driver": "file", "path": f"{folder}/"}
    place = {"bucket": folder.bucket, "path": f"{folder.key}/"}
    if folder.scheme == "gs":
        return {"driver": "gcs", **place}
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    named = {"endpoint": endpoint, "aws_region": region}
    return {"driver": "s3", **place, **{name: value for name, value in named.items() if value}}
