"""Signals that ask a process to stop, and the certainty that it does.

Python runs a signal's handler in the main thread, which may wait for a device or a library that
never answers. So a thread of its own hears of each signal too: the second one, or one that nobody
has answered for a while, ends the process at once.

What a handler raises is lost where Python has nobody to pass it on to, and aborts the process where
the caller is C++. So a signal that comes there is sent again a little later.
"""

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any, NoReturn

GRACE_SECONDS = 60.0
"""A signal that is not answered for so long ends the process."""

_NUMBERS = (signal.SIGTERM, signal.SIGINT)
_RESEND_SECONDS = 0.05

# Code that the interpreter calls by itself, and whose exceptions it drops; JAX has one at each
# collection of garbage.
_UNRAISABLE = {"__del__", "_xla_gc_callback"}
_IMPORT = "<frozen importlib._bootstrap"

_answered = threading.Event()
_watches = 0
_resends = 0
_has_begun = False
_is_raised = False
_remembered = False
_num_unfinished = 0
_num_held = 0
_asked: int | None = None
_is_program = False


class Stopped(BaseException):
    """A SIGTERM. No `except Exception` holds it up, and what is half written is cleared away."""


def end_on_signals() -> None:
    """Makes a SIGTERM or Ctrl-C end the process at once, in one line: nothing has begun. For a
    process that is a binary, and nothing else.
    """
    global _is_program
    _is_program = True
    for number in _NUMBERS:
        signal.signal(number, _end_at_start)


def _end_at_start(number: int, frame: object) -> None:
    name = signal.Signals(number).name
    if _has_begun:
        _end(number, f"{name} after the work was done", "all was written")
    _end(number, f"{name} before anything was done", "nothing was written")


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Makes a SIGTERM within the block raise `Stopped`, and a Ctrl-C KeyboardInterrupt, in the main
    thread, where they reach the end of the block.
    """
    global _has_begun, _is_raised, _asked
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _has_begun = _is_raised = True
    _asked = None
    previous_handlers = {number: signal.signal(number, _raise_or_resend) for number in _NUMBERS}
    previous_hook = sys.unraisablehook
    sys.unraisablehook = lambda dropped: _resend_dropped(dropped, previous_hook)
    try:
        yield
    finally:
        _is_raised = False
        sys.unraisablehook = previous_hook
        for number, handler in previous_handlers.items():
            signal.signal(number, handler)


def _raise_or_resend(number: int, frame: FrameType | None) -> None:
    """The handler of a signal that is to be raised."""
    global _asked
    _asked = number
    # A module whose import is broken off may be half there for those who try again, and an
    # extension's turns the error into another. To end the process is the quickest.
    imports = _is_within(frame, _is_import)
    if _num_held:
        # What it waits for takes as long as it needs.
        answer()
        _resend(number)
    elif imports and _is_program and not _num_unfinished:
        _end(number, f"{signal.Signals(number).name} while libraries were loaded")
    elif imports or _is_within(frame, _is_unraisable):
        _resend(number)
    elif number == signal.SIGINT:
        raise KeyboardInterrupt
    else:
        raise Stopped


def _is_within(frame: FrameType | None, is_kind: Callable[[CodeType], bool]) -> bool:
    """Whether a frame, or one that called it, is of code of a kind."""
    while frame is not None:
        if is_kind(frame.f_code):
            return True
        frame = frame.f_back
    return False


def _is_import(code: CodeType) -> bool:
    return code.co_filename.startswith(_IMPORT)


def _is_unraisable(code: CodeType) -> bool:
    return code.co_name in _UNRAISABLE


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Raises a signal that comes within the block after it: what is being written becomes whole.
    The second signal ends the process all the same.
    """
    global _num_held
    _num_held += 1
    try:
        yield
    finally:
        _num_held -= 1


@contextlib.contextmanager
def unfinished() -> Iterator[None]:
    """Keeps a signal from ending the process at once within the block, which would leave something
    half done.
    """
    global _num_unfinished
    _num_unfinished += 1
    try:
        yield
    finally:
        _num_unfinished -= 1


def _resend_dropped(dropped: Any, hook: Any) -> None:
    """Sends a signal again whose exception Python has dropped; leaves any other to a hook."""
    if issubclass(dropped.exc_type, Stopped):
        _resend(signal.SIGTERM)
    elif issubclass(dropped.exc_type, KeyboardInterrupt):
        _resend(signal.SIGINT)
    else:
        hook(dropped)


def _resend(number: int) -> None:
    timer = threading.Timer(_RESEND_SECONDS, _send, [number])
    timer.daemon = True
    timer.start()


def _send(number: int) -> None:
    global _resends
    # The block may have ended meanwhile, and the work with it.
    if _is_raised:
        _resends += 1
        signal.pthread_kill(threading.main_thread().ident or 0, number)


def leave(code: int) -> NoReturn:
    """Ends a binary at once, after what it has to say is said; elsewhere raises SystemExit.

    On the regular way out, threads of libraries that still compute would crash the interpreter,
    hold it up, or complain after the last line.
    """
    if not _is_program:
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def asked() -> int | None:
    """The signal that came within the last block of `raised`: what it raises may reach the end of
    the block as another error, of the library that it broke off. None without.
    """
    return _asked


def remember(is_asked: bool = True) -> None:
    """Notes that a SIGTERM was taken by a handler that raises nothing; or that none was yet."""
    global _remembered
    _remembered = is_asked


def raise_remembered() -> None:
    """Raises `Stopped` where a SIGTERM was remembered: what it was to stop was at its end already,
    and more work would follow.
    """
    if _remembered:
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
        if numbers[0] not in _NUMBERS or _is_resent():
            continue
        if first is not None:
            _end(numbers[0], "was asked a second time to stop")
        first = signal.Signals(numbers[0])
        deadline = time.monotonic() + grace_seconds


def _is_resent() -> bool:
    """Whether a signal is one that was sent again."""
    global _resends
    if not _resends:
        return False
    _resends -= 1
    return True


def _end(
    number: int, reason: str, outcome: str = "the work goes on from what was saved"
) -> NoReturn:
    line = f"error: {reason}; the process ends at once, and {outcome}\n"
    with contextlib.suppress(OSError):
        os.write(2, line.encode())
    os._exit(128 + number)
