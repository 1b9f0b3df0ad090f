"""Signals that ask a process to stop, and the certainty that it does.

Python runs a signal's handler in the main thread, which may wait for a device or a library that
never answers. So a thread of its own hears of each signal too: the second one, or one that nobody
has answered for a while, ends the process at once.
"""

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Iterator

GRACE_SECONDS = 60.0
"""A signal that is not answered for so long ends the process."""

_NUMBERS = (signal.SIGTERM, signal.SIGINT)
_answered = threading.Event()
_watches = 0


class Stopped(BaseException):
    """A SIGTERM. No `except Exception` holds it up, and what is half written is cleared away."""


def end_on_signals() -> None:
    """Makes a SIGTERM or Ctrl-C end the process at once, in one line: nothing has begun."""
    for number in _NUMBERS:
        signal.signal(number, _end_at_start)


def _end_at_start(number: int, frame: object) -> None:
    _end(number, f"{signal.Signals(number).name} before anything was done", "nothing was written")


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Makes a SIGTERM within the block raise `Stopped`, and a Ctrl-C KeyboardInterrupt, in the main
    thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    previous_handler = signal.signal(signal.SIGTERM, _raise_stopped)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous_handler)


def _raise_stopped(number: int, frame: object) -> None:
    raise Stopped


def answer() -> None:
    """Tells that the process is on its way to its end, which may take as long as it needs."""
    _answered.set()


@contextlib.contextmanager
def watched(grace_seconds: float = GRACE_SECONDS) -> Iterator[None]:
    """Ends the process at its second SIGTERM or Ctrl-C within the block, or `grace_seconds` after
    one that `answer` does not follow. Outside of the main thread, or within another, does nothing.
    """
    global _watches
    if threading.current_thread() is not threading.main_thread() or _watches:
        yield
        return

    _watches += 1
    _answered.clear()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader, grace_seconds), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        # The thread ends where nobody can write any more.
        os.close(writer)
        _watches -= 1


def _watch(reader: int, grace_seconds: float) -> None:
    """Reads the numbers of the signals, one byte each, until the pipe is closed with its block: a
    signal of one block never ends the process in another.
    """
    first: signal.Signals | None = None
    deadline: float | None = None
    while True:
        seconds = None if deadline is None else max(deadline - time.monotonic(), 0.0)
        if not select.select([reader], [], [], seconds)[0]:
            assert first is not None
            if not _answered.is_set():
                _end(first, f"did not answer {first.name} for {grace_seconds:.0f} s")
            deadline = None
            continue

        numbers = os.read(reader, 1)
        if not numbers:
            os.close(reader)
            return
        if numbers[0] not in _NUMBERS:
            continue
        if first is not None:
            _end(numbers[0], "was asked a second time to stop")
        first = signal.Signals(numbers[0])
        deadline = time.monotonic() + grace_seconds


def _end(number: int, reason: str, outcome: str = "the work goes on from what was saved") -> None:
    line = f"error: {reason}; the process ends at once, and {outcome}\n"
    with contextlib.suppress(OSError):
        os.write(2, line.encode())
    os._exit(128 + number)
