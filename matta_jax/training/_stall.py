"""A run that stands still says what it waits for."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator


class Stall:
    """Tells of each `seconds` without progress.

    Args:
      seconds: of silence before a line.
      say: takes the line.
      clock: seconds that only rise.
    """

    def __init__(
        self,
        seconds: float,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ):
        self._seconds = seconds
        self._say = say
        self._clock = clock
        self._phase = "the first batch"
        self._since = clock()
        self._next_line = self._since + seconds

    def enter(self, phase: str) -> None:
        """Notes what the run waits for from here on, such as `data for step 3`."""
        self._phase = phase
        self._since = self._clock()
        self._next_line = self._since + self._seconds

    def check(self) -> None:
        """Says a line where one is due."""
        elapsed = self._clock() - self._since
        if self._clock() < self._next_line:
            return
        self._say(f"no step for {elapsed:.0f} s: the run waits for {self._phase}")
        # Each line at twice the silence of the one before.
        self._next_line = self._since + 2 * elapsed

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Checks from a thread within the block."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(min(self._seconds / 4, 5.0)):
                self.check()

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
