"""Files that grow: at each line on a disk, and now and then in a bucket, where objects do not."""

import contextlib
import time
from collections.abc import Iterator

from matta_jax.storage._files import append_line
from matta_jax.storage._paths import Path, in_bucket

_SECONDS = 10.0
_SHARE = 0.02


class Pace:
    """How often what grows is written to a bucket again: all of it is one object, which stores let
    be written about once a second. At most every ten seconds, and for a fiftieth of the time.
    """

    def __init__(self) -> None:
        self._next_time = 0.0

    @property
    def is_due(self) -> bool:
        """Whether it may be written now; at first it may."""
        return time.monotonic() >= self._next_time

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Within it, it is written."""
        start_time = time.monotonic()
        try:
            yield
        finally:
            end_time = time.monotonic()
            self._next_time = end_time + max(_SECONDS, (end_time - start_time) / _SHARE)


class GrowingFile:
    """A file to which lines are added, one after another.

    On a disk each is there when `append` returns, as by `append_line`. In a bucket lines wait for
    their time, as `Pace` says, or for `flush`; a process that is killed loses those that wait.

    Args:
      path: of it; it need not be there.
    """

    def __init__(self, path: Path):
        self._path = path
        self._pace = Pace()
        self._waiting: list[str] = []

    def append(self, line: str) -> None:
        """Adds a line. Raises OSError where it cannot be written."""
        if not in_bucket(self._path):
            append_line(self._path, line)
            return
        self._waiting.append(line)
        if self._pace.is_due:
            self.flush()

    def flush(self) -> None:
        """Writes what waits. Raises OSError where it cannot."""
        if not self._waiting:
            return
        with self._pace.writing():
            append_line(self._path, "\n".join(self._waiting))
        self._waiting.clear()
