"""A run that is asked to stop ends after a step, with a checkpoint."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

import jax
from jax.experimental import multihost_utils

from matta_jax import stops


@contextlib.contextmanager
def stop_requests() -> Iterator[Callable[[int], bool]]:
    """Yields `asked(step)`: whether a SIGTERM asks the run to stop after this step, the same on
    every process.

    With several processes JAX's preemption service takes the signal, and finds a step that all can
    stop at.
    """
    stops.remember(False)
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return

    event = threading.Event()

    def asked(step: int) -> bool:
        is_asked = event.is_set()
        if is_asked:
            stops.answer()
        return is_asked

    # Python sets handlers in the main thread alone; a run elsewhere is never asked.
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def remember(signal_number: int, frame: FrameType | None) -> None:
        event.set()
        stops.remember()

    # What was there before is put back, so that a notebook or a sweep keeps its own handler.
    previous_handler = signal.signal(signal.SIGTERM, remember)
    try:
        # A step may never end, and the handler waits for it: the second signal does not.
        with stops.watched():
            yield asked
    finally:
        signal.signal(signal.SIGTERM, previous_handler)
