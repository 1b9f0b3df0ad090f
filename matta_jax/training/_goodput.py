"""Where the wall time of a run goes: to its steps, or to what keeps it from them."""

import contextlib
import datetime
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax

from matta_jax import storage
from matta_jax.reporting import MOST_SECONDS, SECONDS, wall_time

CAUSES = ("step", "compile", "data", "evaluation", "checkpoint", "start", "redone", "down")
"""What seconds are counted by:

- `step`: training steps whose result stands.
- `compile`: the first call of each program of a step, in each process.
- `data`: devices that are done wait for the next batch.
- `evaluation`: evaluations with what they compile, and texts and gradients that are told.
- `checkpoint`: the loop waits for a checkpoint; what is written while it goes on costs nothing.
- `start`: from the start of a process to its first batch: libraries, data, the state.
- `redone`: steps that a kill took back, from the checkpoint that the next process goes on from.
- `down`: from the last line of a killed process to the start of the next one: steps that no line
  told of, and the time without a process. After a run that ended by itself nothing is counted.
"""

# Of a line: the time of day, and whether its process ended by itself.
_TIME = "time"
_ENDED = "ended"


class Ledger:
    """Seconds by cause, which add up to the wall time of a run over all its processes.

    Each moment belongs to the cause that was entered last, so that nothing is counted twice or
    not at all.

    Args:
      started: when this process began, in seconds of `clock`; None: now.
      clock: seconds that only rise.
      time_of_day: seconds that processes of other days and machines share.
    """

    def __init__(
        self,
        started: float | None = None,
        *,
        clock: Callable[[], float] = time.perf_counter,
        time_of_day: Callable[[], float] = time.time,
    ):
        self._clock = clock
        self._time_of_day = time_of_day
        self._since = clock() if started is None else started
        self._start_time = time_of_day() - (clock() - self._since)
        self._cause = "start"
        self._seconds = dict.fromkeys(CAUSES, 0.0)

    def enter(self, cause: str, at: float | None = None) -> None:
        """Counts what follows to another cause; what follows a moment `at`, where it has passed."""
        now = self._clock() if at is None else at
        self._seconds[self._cause] += now - self._since
        self._cause, self._since = cause, now

    def charge(self, cause: str, since: float | None) -> None:
        """Counts what has passed since a moment to a cause, and what follows to steps; None: all of
        it belongs to steps.
        """
        if since is not None:
            self.enter(cause, at=since)
        self.enter("step")

    def go_on(self, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Takes over what the lines of earlier processes tell, of a run that goes on from a step.
        Steps after it are redone.

        Args:
          rows: of all lines, in their order, also of steps that are taken back.
          step: of the checkpoint; 0 without one.
        """
        told = [row for row in rows if _is_ledger(row)]
        if not told:
            return
        last = told[-1]
        for cause in CAUSES:
            self._seconds[cause] += last[SECONDS + cause]

        standing = [row[SECONDS + "step"] for row in told if row["step"] <= step]
        # What a line told of steps is never less than what an earlier one told.
        taken_back = max(last[SECONDS + "step"] - max(standing, default=0.0), 0.0)
        self._seconds["step"] -= taken_back
        self._seconds["redone"] += taken_back
        if not last.get(_ENDED):
            # Clocks of two machines may differ.
            self._seconds["down"] += max(self._start_time - last[_TIME], 0.0)

    def row(self, *, ended: bool = False) -> dict[str, float]:
        """Metrics up to this moment: `goodput`, the share of `step` in all seconds; `seconds/CAUSE`
        of each; and the time of day, in seconds since 1970.

        Args:
          ended: whether the process ends here, by itself.
        """
        self.enter(self._cause)
        total = sum(self._seconds.values())
        row = {"goodput": self._seconds["step"] / total if total else 0.0}
        row |= {SECONDS + cause: seconds for cause, seconds in self._seconds.items()}
        row[_TIME] = self._time_of_day()
        return row | ({_ENDED: 1} if ended else {})


def time_line(row: Mapping[str, float]) -> str:
    """What `Ledger.row` says, for people: `goodput 83% of 0:12:03 (compile 9%, start 6%)`."""
    total, losses = wall_time(row)
    shares = [f"{cause} {share:.0%}" for cause, share in losses.items()]
    span = datetime.timedelta(seconds=round(total))
    return f"goodput {row['goodput']:.0%} of {span} ({', '.join(shares)})"


def _is_ledger(row: Mapping[str, Any]) -> bool:
    """Whether a line tells of all causes, as those of older versions do not; and of what can be."""
    values = [row.get(name) for name in ("step", _TIME, *(SECONDS + cause for cause in CAUSES))]
    return all(storage.is_number(value) and 0 <= value <= MOST_SECONDS for value in values)


class StepEnds:
    """Notes when devices are done with a step. The host is ahead of them, and cannot tell whether
    they are at work while it waits for a batch.

    Args:
      clock: seconds that only rise.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._queue: queue.SimpleQueue[tuple[int, Any] | None] = queue.SimpleQueue()
        self._count = 0
        # How many steps have ended, and when the last of them did.
        self._ended = (0, 0.0)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Watches from a thread within the block."""
        # Nobody waits for it: a device that is lost may never be done.
        threading.Thread(target=self._watch, daemon=True).start()
        try:
            yield
        finally:
            self._queue.put(None)

    def follow(self, metrics: Any) -> None:
        """Follows a step, which was begun after all before it, by arrays that it returns."""
        self._count += 1
        self._queue.put((self._count, metrics))

    def idle_since(self, moment: float) -> float | None:
        """Since when all devices are done, `moment` at the earliest; None while they are at
        work.
        """
        count, end = self._ended
        return max(moment, end) if count == self._count else None

    def _watch(self) -> None:
        while (item := self._queue.get()) is not None:
            count, metrics = item
            # What a step raises the loop gets too.
            with contextlib.suppress(Exception):
                jax.block_until_ready(metrics)
            self._ended = (count, self._clock())
