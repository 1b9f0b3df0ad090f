"""What a binary prints, where the reader may go away and the terminal may lack characters."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

USAGE_ERROR = 2
"""Exit code of a user's mistake."""

LOST = 3
"""Exit code of a process that stopped because another one died or could not be reached: start all
of them again."""

# As a shell has it of a process that the signal of a closed pipe ends.
_CLOSED_PIPE = 141


class Output:
    """A text stream that keeps its first failure to itself, so that the work goes on.

    Attributes:
      failure: the first OSError; None without.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        """Writes a text, or nothing once the stream has failed."""
        if self.failure is None:
            try:
                self._stream.write(text)
            except OSError as error:
                self._give_up(error)
        return len(text)

    def flush(self) -> None:
        """Passes on what was written."""
        if self.failure is None:
            try:
                self._stream.flush()
            except OSError as error:
                self._give_up(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _give_up(self, error: OSError) -> None:
        self.failure = error
        # What is still in the buffer goes nowhere; Python would complain of it at its end.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


@contextlib.contextmanager
def guarded_output() -> Iterator[Output]:
    """Prints through an `Output` within the block."""
    stream = sys.stdout
    # A terminal without a character shows its code.
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")

    output = Output(stream)
    sys.stdout = output
    try:
        yield output
    finally:
        output.flush()
        sys.stdout = stream


def exit_of(output: Output) -> tuple[int, str]:
    """The exit code of a failure to print, and its line, which is empty of a closed pipe; 0 where
    all was printed.
    """
    if output.failure is None:
        return 0, ""
    if output.failure.errno == errno.EPIPE:
        return _CLOSED_PIPE, ""
    return 2, f"the output cannot be printed ({output.failure.strerror}); send it elsewhere"
