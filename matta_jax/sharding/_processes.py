"""Several processes that are one run: how they find each other, agree, and part."""

import contextlib
import hashlib
import os
import sys
import time
from collections.abc import Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

from matta_jax.errors import UserError

_PARTING_SECONDS = 3.0
_heartbeat_seconds = 0  # That this process joined with.


def join_processes(
    *,
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    heartbeat_seconds: int = 100,
) -> None:
    """Joins the processes of a run, before any array exists. What is None is found out on Cloud
    TPU, Kubernetes, SLURM.

    Args:
      coordinator: HOST:PORT of process 0.
      num_processes: of the run.
      process_id: this one's, from 0.
      heartbeat_seconds: how long a silent process counts as alive.

    Raises:
      UserError: no launcher is detected and a value is missing, or the processes do not find each
        other.
    """
    global _heartbeat_seconds
    _heartbeat_seconds = heartbeat_seconds
    stated = (coordinator, num_processes, process_id)
    if coordinator is not None and ":" not in coordinator:
        raise UserError(
            f"--coordinator={coordinator!r} must be HOST:PORT of process 0, such as 10.0.0.1:1234"
        )
    if num_processes is not None and process_id is not None and not 0 <= process_id < num_processes:
        raise UserError(
            f"--process_id={process_id} must be from 0 to {num_processes - 1} (--num_processes - 1)"
        )
    try:
        jax.distributed.initialize(
            *stated,
            heartbeat_timeout_seconds=heartbeat_seconds,
            cluster_detection_method="deactivate" if None not in stated else None,
        )
    except (ValueError, RuntimeError, ImportError, KeyError) as error:
        shown = " ".join(str(error).split())[:200]
        raise UserError(
            f"--distributed cannot join the other processes ({type(error).__name__}: {shown}); on "
            "Cloud TPU, SLURM and "
            "Kubernetes (with its Python client) nothing else is needed, elsewhere give "
            "--coordinator, "
            "--num_processes and --process_id"
        ) from None


def is_first() -> bool:
    """Whether this process is the one that writes and logs."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Returns when every process has come to the point of this name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def any_process(flag: bool) -> bool:
    """Whether the flag is set on any process."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def check_agreement(facts: Mapping[str, str]) -> None:
    """Compares what every process must see alike. Raises UserError that names the first fact that
    differs.
    """
    if jax.process_count() == 1:
        return
    digests = [hashlib.blake2b(text.encode(), digest_size=8).digest() for text in facts.values()]
    every = multihost_utils.process_allgather(
        np.frombuffer(b"".join(digests), np.uint8).reshape(len(digests), 8)
    )
    for i, name in enumerate(facts):
        odd = [
            process
            for process in range(len(every))
            if not np.array_equal(every[process, i], every[0, i])
        ]
        if odd:
            shown = ", ".join(map(str, odd[:8])) + (", …" if len(odd) > 8 else "")
            raise UserError(
                f"{name} differs between process 0 and process {shown}; give all processes the same"
            )


def wait_for_verdict(error: BaseException) -> None:
    """Lets the runtime end this process, where an error may come from another one's death: it knows
    who died.

    A broken collective raises at once; the runtime finds the dead process by its heartbeat, and
    then aborts this one.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, jax.errors.JaxRuntimeError):
        cause = cause.__cause__ or cause.__context__
    if cause is not None:
        time.sleep(2 * _heartbeat_seconds + 5)


def part(code: int) -> None:
    """Ends a process of a run that fails, at once: at a normal exit it would wait for the others to
    finish.

    Processes that fail alike part together; one that fails alone leaves the others to their
    heartbeat.
    """
    from jax._src import (
        distributed,
    )  # The one barrier that does not need the devices, which may be stuck.

    client = distributed.global_state.client
    assert client is not None
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.suppress(Exception):  # Any failure means that the others do not part now.
        client.wait_at_barrier("matta_jax/part", int(1000 * _PARTING_SECONDS))
    os._exit(code)
