"""What libraries complain of, held back until it is known whether a line of ours says it better."""

import contextlib
import logging
import sys
import threading
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Any

# More than these tell nothing new.
_MOST = 20


class Complaints(logging.Filter):
    """Errors that libraries log, and exceptions that reach nobody, such as those of threads."""

    def __init__(self) -> None:
        super().__init__()
        self._texts: list[str] = []

    def filter(self, record: logging.LogRecord) -> bool:
        """Keeps the errors of libraries from a handler; their warnings, and all of ours, pass."""
        if record.levelno < logging.ERROR or "/matta_jax/" in record.pathname:
            return True
        self._add(logging.Formatter("%(pathname)s: %(message)s").format(record))
        return False

    def of_thread(self, arguments: Any) -> None:
        """As `threading.excepthook`."""
        self.of_error(arguments.exc_type, arguments.exc_value, arguments.exc_traceback)

    def of_unraisable(self, arguments: Any) -> None:
        """As `sys.unraisablehook`."""
        self.of_error(arguments.exc_type, arguments.exc_value, arguments.exc_traceback)

    def of_error(
        self, kind: type[BaseException], error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """As `sys.excepthook`, which C++ calls from its threads."""
        self._add("".join(traceback.format_exception(kind, error, trace)).rstrip())

    def tell(self) -> None:
        """Prints them on stderr, and forgets them."""
        texts, self._texts = self._texts, []
        for text in texts:
            print(text, file=sys.stderr)

    def forget(self) -> None:
        """Drops them: a line of ours has told what is wrong."""
        self._texts = []

    def _add(self, text: str) -> None:
        if len(self._texts) < _MOST:
            self._texts.append(text)


@contextlib.contextmanager
def complaints_held() -> Iterator[Complaints]:
    """Holds complaints back within the block; at its end they are told, unless the process has
    ended in it.
    """
    complaints = Complaints()
    handlers = list(logging.getLogger().handlers)
    hooks = sys.excepthook, sys.unraisablehook, threading.excepthook
    for handler in handlers:
        handler.addFilter(complaints)
    sys.excepthook = complaints.of_error
    sys.unraisablehook = complaints.of_unraisable
    threading.excepthook = complaints.of_thread
    try:
        yield complaints
    except SystemExit:
        # A line has told what is wrong.
        complaints.forget()
        raise
    finally:
        sys.excepthook, sys.unraisablehook, threading.excepthook = hooks
        for handler in handlers:
            handler.removeFilter(complaints)
        complaints.tell()
