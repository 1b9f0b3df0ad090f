"""What cannot be written ends in one line, always of the same form."""

import contextlib
import errno
import os
from collections.abc import Iterator

from matta_jax.errors import UserError
from matta_jax.storage._paths import Path

_CANNOT_WRITE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EIO,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ELOOP,
    errno.ENAMETOOLONG,
}


@contextlib.contextmanager
def writing(field: str, where: str | Path, mend: str, *, wrapped: bool = False) -> Iterator[None]:
    """Turns a failure to write within the block into one line: `field='where' cannot be written
    (reason); mend`.

    Args:
      field: which the user set, such as `output`.
      where: its value.
      mend: what the user may do.
      wrapped: for a long block that also reads and computes. Only errors count that tell of a full
        or closed disk, or of a folder that cannot be made on the way to `where`; and these also
        where a library wraps them or only quotes their words.

    Raises:
      UserError: what this makes of a failure, and any of the block's own.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = _wrapped_reason(error, Path(where)) if wrapped else _reason(error)
        if reason is None:
            raise
        message = f"{field}={str(where)!r} cannot be written ({reason}); {mend}"
        raise UserError(message) from None


@contextlib.contextmanager
def writing_by_library(field: str, where: str | Path, mend: str) -> Iterator[None]:
    """As `writing`, of a block in which a library may write, whose errors are not always those of
    the file system: any OSError counts, and what else tells of a full or closed disk.
    """
    with writing(field, where, mend, wrapped=True), writing(field, where, mend):
        yield


def _reason(error: Exception) -> str | None:
    """The words of an error of the file system; None for any other."""
    if not isinstance(error, OSError):
        return None
    return error.strerror or str(error)


def _wrapped_reason(error: Exception, where: Path) -> str | None:
    """The words of the first error that tells of writing, in a chain of causes; None without."""
    cause: BaseException | None = error
    while cause is not None:
        # A folder above `where` that is missing is one that could not be made. Any other missing
        # file is one that was to be read.
        missing = cause.filename if isinstance(cause, FileNotFoundError) else None
        if missing and Path(missing) in (where, *where.parents):
            return os.strerror(errno.ENOENT)

        # tensorstore's errors are no OSErrors, but quote their words.
        text = str(cause)
        for words in map(os.strerror, _CANNOT_WRITE):
            if words in text:
                return words

        cause = cause.__cause__ or cause.__context__
    return None
