"""A process of a distributed run, and the small parent that watches over it.

When another process dies, JAX's runtime aborts this one from C++, with a page of stack trace. So
the work runs in a child; the parent passes its output and signals on, and says in one line what an
abort meant.
"""

import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
from typing import IO, TextIO

from absl import flags

from matta_jax.errors import UserError

_DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "Join the other processes of this run, which Cloud TPU, Kubernetes or SLURM has started.",
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, where no launcher is detected."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes of the run.", lower_bound=1)
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "This process's number, from 0.", lower_bound=0
)
_HEARTBEAT = flags.DEFINE_integer(
    "heartbeat_seconds",
    100,
    "A process that is silent for so long is dead, and the others stop.",
    lower_bound=1,
)

LOST = 3
"""Exit code of a process that stopped because another one died: start all of them again."""

_CHILD = "MATTA_JAX_CHILD"
_MARK = re.compile(rb"coordination_service(_agent)?\.cc|preemption_sync_manager\.cc|fatal errors")
_SILENT = re.compile(rb"stopped sending heartbeats\):\s*((?:\d+\s*)+)")
_NOISE = re.compile(rb"\[Gloo\] | is connected to |peer ranks")
_NUMBER = re.compile(rb"\s*\d[\d\s]*")
"""Gloo's threads write a line in pieces, over each other: lines with its words, and with a number
alone.
"""


def join(binary: str) -> None:
    """Joins the processes that the flags name, in a child of this process, which runs
    `matta_jax.bin.BINARY`.

    Returns in the child, or when there is one process alone.

    Raises:
      UserError: the flags name part of what is needed, or a launcher's other tasks would each train
        alone.
    """
    stated = (_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    given = [
        holder.name
        for holder in (_COORDINATOR, _NUM_PROCESSES, _PROCESS_ID)
        if holder.value is not None
    ]
    if given and len(given) < 3 and not _DISTRIBUTED.value:
        raise UserError(
            f"--{given[0]} is not enough: give --coordinator, --num_processes and --process_id "
            "together"
        )
    if not given and not _DISTRIBUTED.value:
        tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
        if tasks != "1":
            raise UserError(
                f"SLURM started {tasks} tasks, and without --distributed each would train alone in "
                "the same folder; "
                "add --distributed"
            )
        return
    if _CHILD not in os.environ:
        sys.exit(_watch([sys.executable, "-m", f"matta_jax.bin.{binary}", *sys.argv[1:]]))
    from matta_jax.sharding import join_processes  # Here, so that the parent loads no JAX.

    join_processes(
        coordinator=stated[0],
        num_processes=stated[1],
        process_id=stated[2],
        heartbeat_seconds=_HEARTBEAT.value,
    )


def _watch(command: list[str]) -> int:
    """Runs a command as a child that dies with its parent; returns its exit code."""
    child = subprocess.Popen(
        command,
        env=os.environ | {_CHILD: "1", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # A Ctrl-C comes by way of the parent alone.
        preexec_fn=_die_with_parent,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: child.send_signal(number))
    assert child.stdout is not None and child.stderr is not None
    output = threading.Thread(target=_relay, args=(child.stdout, sys.stdout))
    output.start()
    said, lost = _relay(child.stderr, sys.stderr)
    output.join()
    code = child.wait()
    if lost is None or code == 0 or said:
        return code if code >= 0 else 128 - code
    who = f"process {lost}" if lost else "process 0, or the connection to it,"
    line = (
        f"error: {who} of this run died, so this one stops; "
        "start all processes again with the same commands"
    )
    print(f"{line}: they go on from the last checkpoint", file=sys.stderr)
    return LOST


def _relay(stream: IO[bytes], to: TextIO) -> tuple[bool, str | None]:
    """Passes lines on, but not the runtime's last words.

    Returns:
      Whether the child has said what was wrong in a line of its own; and None, or what the runtime
      said of who died: their numbers, or nothing.
    """
    said, last_words = False, b""
    for line in stream:
        own = line.startswith(b"error: ")
        said = said or own
        noise = _NOISE.search(line) or (not last_words and _NUMBER.fullmatch(line))
        if own or not (last_words or _MARK.search(line) or noise):
            to.buffer.write(line)
            to.flush()
        elif not noise:
            last_words += line
    if not last_words:
        return said, None
    found = _SILENT.search(last_words)
    return said, ", ".join(found[1].decode().split()) if found else ""


def _die_with_parent() -> None:
    """Linux kills this process when its parent dies, even by kill -9."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
