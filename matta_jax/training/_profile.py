"""A profile of some steps of a run, which xprof, TensorBoard and Perfetto open."""

import contextlib
import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax

from matta_jax import storage
from matta_jax.errors import UserError, shorten

_STEPS = re.compile(r"(\d{1,9}):(\d{1,9})")
_FOLDER = "profile"


def profile_steps(text: str) -> range:
    """Reads `10:13`, the steps after the tenth up to the thirteenth. Raises UserError."""
    matched = _STEPS.fullmatch(text)
    steps = range(*map(int, matched.groups())) if matched else range(0)
    if not steps:
        raise UserError(
            f"profile_steps={shorten(text)} must be FIRST:LAST, such as 10:13 for the three steps "
            "after step 10"
        )
    return steps


@dataclasses.dataclass
class Profile:
    """What the devices and the host do in some steps.

    Attributes:
      steps: those to profile; empty: none.
      workdir: of the run, in whose folder `profile` the trace is written.
      log: takes a line where it lies.
    """

    steps: range
    workdir: storage.Path
    log: Callable[[str], None]

    def __post_init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._is_open = False

    def before(self, step: int) -> None:
        """Starts it, where the first of its steps follows after so many."""
        if not self.steps or step != self.steps.start or jax.process_index() != 0:
            return
        folder = self.workdir / _FOLDER
        local = self._stack.enter_context(storage.grown_folder(folder))
        self._stack.callback(lambda: storage.publish_files(local, folder))
        jax.profiler.start_trace(str(local), create_perfetto_trace=True)
        self._is_open = True

    def after(self, step: int, state: Any) -> None:
        """Ends it after its last step."""
        if not self._is_open or step < self.steps.stop:
            return
        # The host is ahead of the devices.
        jax.block_until_ready(state)
        self.close()
        self.log(
            f"steps {self.steps.start + 1} to {step} are profiled: {self.workdir / _FOLDER}; open "
            "it with xprof, or perfetto_trace.json.gz in it with ui.perfetto.dev"
        )

    def close(self) -> None:
        """Ends it, where a run ends before its last step."""
        if self._is_open:
            self._is_open = False
            jax.profiler.stop_trace()
        self._stack.close()
