"""Buckets: what stands behind addresses such as gs://bucket/run, through fsspec.

An object is written as a whole or not at all, and there are no folders but in names. A bucket that
cannot be reached is an error, never the same as nothing being there.
"""

import contextlib
import errno
import functools
import os
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import fsspec
from etils.epath import gpath

from matta_jax.errors import UserError

EXTRAS = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}
"""Of each scheme the package that it needs, and the extra of ours that has it."""

# Listings that are remembered would hide what other processes have written.
for _scheme in ("gs", "gcs", "s3", "s3a"):
    fsspec.config.conf.setdefault(_scheme, {}).setdefault("use_listings_cache", False)
# TensorFlow, where it is installed, would be imported for a path.
os.environ.setdefault("EPATH_USE_TF", "false")


class BucketPath(gpath.PosixGPath):
    """A path in a bucket, with the methods of a local one that other rooms use."""

    @property
    def scheme(self) -> str:
        """`gs` or `s3`."""
        return self.parts[1]

    @property
    def bucket(self) -> str:
        """Its bucket's name."""
        return self.parts[2]

    @property
    def key(self) -> str:
        """Its name within the bucket; empty for the bucket itself."""
        return "/".join(self.parts[3:])

    @property
    def parents(self) -> Sequence["BucketPath"]:
        """The folders above it, up to the bucket."""
        depth = len(self.parts) - 3
        return [type(self)("/", *self.parts[: 3 + i]) for i in reversed(range(depth))]

    def exists(self) -> bool:
        """Whether an object has this name, or lies below it. Raises UserError where the bucket
        cannot be reached.
        """
        return self._info() is not None

    def is_file(self) -> bool:
        """Whether an object has this name. Raises UserError as `exists`."""
        info = self._info()
        return info is not None and info["type"] == "file"

    def is_dir(self) -> bool:
        """Whether an object lies below this name. Raises UserError as `exists`."""
        info = self._info()
        return info is not None and info["type"] == "directory"

    def resolve(self, strict: bool = False) -> "BucketPath":
        """Itself: an address is absolute."""
        del strict
        return self

    def expanduser(self) -> "BucketPath":
        """Itself: `~` is a letter of an object's name."""
        return self

    def num_bytes(self) -> int:
        """Bytes of the object. Raises OSError as `read`."""
        return int(self._file_info()["size"])

    def version(self) -> str:
        """Tells what the object holds from what it held before. Raises OSError as `read`."""
        info = self._file_info()
        names = ("generation", "etag", "ETag", "md5Hash", "size")
        return " ".join(str(info[name]) for name in names if name in info)

    def read(self) -> bytes:
        """The bytes of the object. Raises FileNotFoundError, or OSError where it cannot be
        reached.
        """
        return _done(self, lambda: filesystem(self.scheme).cat_file(str(self)))

    def write(self, data: bytes) -> None:
        """Writes the object as a whole. Raises OSError."""
        _done(self, lambda: filesystem(self.scheme).pipe_file(str(self), data))

    def download(self, target: str | os.PathLike[str]) -> None:
        """Copies the object to a local file. Raises OSError as `read`."""
        _done(self, lambda: filesystem(self.scheme).get_file(str(self), os.fspath(target)))

    def upload(self, source: str | os.PathLike[str]) -> None:
        """Copies a local file to the object. Raises OSError."""
        _done(self, lambda: filesystem(self.scheme).put_file(os.fspath(source), str(self)))

    def remove(self) -> None:
        """Removes the object and all below it, where they are. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            _done(self, lambda: filesystem(self.scheme).rm(str(self), recursive=True))

    def children(self) -> list["BucketPath"]:
        """What lies in it, sorted; nothing where there is no such folder. Raises OSError."""
        try:
            names = _done(self, lambda: filesystem(self.scheme).ls(str(self), detail=False))
        except FileNotFoundError:
            return []
        # A folder may be marked by an object of its own name.
        paths = {bucket_path(f"{self.scheme}://{name.rstrip('/')}") for name in names}
        return sorted(paths - {self})

    def glob_below(self, pattern: str) -> list["BucketPath"]:
        """What a pattern matches, relative to it, sorted; `**` goes down. Raises OSError."""
        start = _escaped(str(self))
        names = _done(self, lambda: filesystem(self.scheme).glob(f"{start}/{pattern}"))
        return sorted(bucket_path(f"{self.scheme}://{name}") for name in names)

    def _file_info(self) -> Mapping[str, Any]:
        info = self._told()
        if info["type"] != "file":
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(self))
        return info

    def check(self) -> None:
        """Raises UserError unless it is there. Who may not ask for a bucket may yet use what lies
        in it, so that a refusal to tell counts as there.
        """
        try:
            self._told()
        except FileNotFoundError:
            raise UserError(f"{self} does not exist; make it, or name another") from None
        except OSError as error:
            if error.errno != errno.EACCES:
                raise self._unreachable(error) from None

    def _info(self) -> Mapping[str, Any] | None:
        try:
            return self._told()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unreachable(error) from None

    def _told(self) -> Mapping[str, Any]:
        info: Mapping[str, Any] = _done(self, lambda: filesystem(self.scheme).info(str(self)))
        return info

    def _unreachable(self, error: OSError) -> UserError:
        return UserError(
            f"{str(self)!r} cannot be reached ({error.strerror or error}); mend the network, the "
            "credentials or the address"
        )


def bucket_path(address: str) -> BucketPath:
    """The path of an address that was checked."""
    return BucketPath(address)


@functools.cache
def filesystem(scheme: str) -> Any:
    """fsspec's file system of a scheme. Raises UserError where its package is not installed."""
    package, extra = EXTRAS[scheme]
    try:
        return fsspec.filesystem(scheme)
    except ImportError:
        raise UserError(
            f"{scheme}:// needs the package {package}: pip install 'matta_jax[{extra}]'"
        ) from None


def _done(path: BucketPath, request: Any) -> Any:
    """What a request returns; any failure of it is an OSError that names the path."""
    try:
        return request()
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path)) from None
    except UserError:
        raise
    # Each library has errors of its own, of which few are OSErrors.
    except Exception as error:
        words = " ".join(str(error).split())[:160] or type(error).__name__
        # gcsfs has the status of HTTP as a number or a text.
        is_refused = isinstance(error, PermissionError) or str(getattr(error, "code", "")) in (
            "401",
            "403",
        )
        code = errno.EACCES if is_refused else errno.EIO
        raise OSError(code, words, str(path)) from None


def _escaped(text: str) -> str:
    """A name as a pattern that matches it alone."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in text)


def new_local_folder() -> str:
    """A folder on the local disk in which what a bucket is to hold is built."""
    return tempfile.mkdtemp(prefix="matta_jax.")
