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

from matta_jax.bin._output import LOST, USAGE_ERROR
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

# Of Linux's prctl: the signal that a process gets when its parent dies.
_PR_SET_PDEATHSIG = 1

# Set in the environment of a child, which must not start another.
_CHILD = "MATTA_JAX_CHILD"

# Where the runtime's last words begin, and where they name who died.
_LAST_WORDS = re.compile(
    rb"coordination_service(_agent)?\.cc|preemption_sync_manager\.cc|fatal errors"
)
_SILENT = re.compile(rb"stopped sending heartbeats\):\s*((?:\d+\s*)+)")

# Gloo's threads write a line in pieces, over each other: lines with its words, and with a number
# alone.
_NOISE = re.compile(rb"\[Gloo\] | is connected to |peer ranks")
_NUMBER = re.compile(rb"\s*\d[\d\s]*")


def join(binary: str) -> None:
    """Joins the processes that the flags name, in a child of this process, which runs
    `matta_jax.bin.BINARY`.

    Returns in the child, or when there is one process alone.

    Raises:
      UserError: the flags name part of what is needed, or a launcher's other tasks would each train
        alone.
    """
    if not _is_distributed():
        return
    if _CHILD not in os.environ:
        sys.exit(_watch([sys.executable, "-m", f"matta_jax.bin.{binary}", *sys.argv[1:]]))

    # Here, so that the parent loads no JAX.
    from matta_jax.sharding import join_processes

    join_processes(
        coordinator=_COORDINATOR.value,
        num_processes=_NUM_PROCESSES.value,
        process_id=_PROCESS_ID.value,
        heartbeat_seconds=_HEARTBEAT.value,
    )


def _is_distributed() -> bool:
    """Whether the flags ask for several processes."""
    if _DISTRIBUTED.value:
        return True

    holders = (_COORDINATOR, _NUM_PROCESSES, _PROCESS_ID)
    names = [holder.name for holder in holders if holder.value is not None]
    if len(names) == len(holders):
        return True
    if names:
        raise UserError(
            f"--{names[0]} is not enough: give --coordinator, --num_processes and --process_id "
            "together"
        )

    num_tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if num_tasks != "1":
        raise UserError(
            f"SLURM started {num_tasks} tasks, and without --distributed each would train alone in "
            "the same folder; add --distributed"
        )
    return False


def _watch(command: list[str]) -> int:
    """Runs a command as a child that dies with its parent; returns its exit code."""
    child = subprocess.Popen(
        command,
        env=os.environ | {_CHILD: "1", "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A Ctrl-C comes by way of the parent alone.
        start_new_session=True,
        preexec_fn=_die_with_parent,
    )
    assert child.stdout is not None and child.stderr is not None

    passed_on: list[int] = []

    def pass_on(number: int, _: object) -> None:
        passed_on.append(number)
        child.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, pass_on)

    output = threading.Thread(target=_relay, args=(child.stdout, sys.stdout))
    output.start()
    has_said_why, dead = _relay(child.stderr, sys.stderr)
    output.join()
    with child:
        code = child.wait()

    if has_said_why and code == -signal.SIGABRT:
        # Aborted while it parted, because process 0 was gone first: the code is that of what it
        # said.
        return 128 + passed_on[-1] if passed_on else USAGE_ERROR
    if dead is None or code == 0 or has_said_why:
        # As a shell has it: 128 and the number of the signal that ended it.
        return code if code >= 0 else 128 - code

    who = f"process {dead}" if dead else "process 0, or the connection to it,"
    print(
        f"error: {who} of this run died, so this one stops; start all processes again with the "
        "same commands: they go on from the last checkpoint",
        file=sys.stderr,
    )
    return LOST


def _relay(stream: IO[bytes], to: TextIO) -> tuple[bool, str | None]:
    """Passes lines on, but not the runtime's last words.

    Returns:
      Whether the child has said what was wrong in a line of its own; and None, or what the runtime
      said of who died: their numbers, or nothing.
    """
    has_said_why = False
    last_words = b""
    for line in stream:
        # The runtime's last words may name the dead in lines of numbers.
        is_noise = bool(_NOISE.search(line) or (not last_words and _NUMBER.fullmatch(line)))
        is_last_words = bool(last_words or _LAST_WORDS.search(line))

        if line.startswith(b"error: "):
            has_said_why = True
            _pass_on(line, to)
        elif is_noise:
            continue
        elif is_last_words:
            last_words += line
        else:
            _pass_on(line, to)

    if not last_words:
        return has_said_why, None
    dead = _SILENT.search(last_words)
    if dead is None:
        return has_said_why, ""
    return has_said_why, ", ".join(dead[1].decode().split())


def _pass_on(line: bytes, to: TextIO) -> None:
    to.buffer.write(line)
    to.flush()


def _die_with_parent() -> None:
    """Linux kills this process when its parent dies, even by kill -9."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
