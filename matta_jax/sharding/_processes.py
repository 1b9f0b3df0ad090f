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

# How long a process that fails waits for the others to fail alike.
_PARTING_SECONDS = 3.0
# How many characters of a runtime's error, and how many processes, a message shows.
_SHOWN_CHARACTERS = 200
_SHOWN_PROCESSES = 8
_DIGEST_BYTES = 8

# What this process joined with.
_heartbeat_seconds = 0


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

    if coordinator is not None and ":" not in coordinator:
        raise UserError(
            f"--coordinator={coordinator!r} must be HOST:PORT of process 0, such as 10.0.0.1:1234"
        )
    if num_processes is not None and process_id is not None and not 0 <= process_id < num_processes:
        raise UserError(
            f"--process_id={process_id} must be from 0 to {num_processes - 1} (--num_processes - 1)"
        )

    # Where all is said, JAX need not ask a launcher, whose answer could contradict it.
    is_complete = None not in (coordinator, num_processes, process_id)
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=heartbeat_seconds,
            cluster_detection_method="deactivate" if is_complete else None,
        )
    except (ValueError, RuntimeError, ImportError, KeyError) as error:
        reason = " ".join(str(error).split())[:_SHOWN_CHARACTERS]
        raise UserError(
            f"--distributed cannot join the other processes ({type(error).__name__}: {reason}); on "
            "Cloud TPU, SLURM and Kubernetes (with its Python client) nothing else is needed, "
            "elsewhere give --coordinator, --num_processes and --process_id"
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
    flags = multihost_utils.process_allgather(np.array(flag))
    return bool(np.any(flags))


def check_agreement(facts: Mapping[str, str]) -> None:
    """Compares what every process must see alike. Raises UserError that names the first fact that
    differs.
    """
    if jax.process_count() == 1:
        return

    # Digests have one length on every process, which a gather needs.
    digests = b"".join(_digest(text) for text in facts.values())
    digests_of_all = multihost_utils.process_allgather(
        np.frombuffer(digests, np.uint8).reshape(len(facts), _DIGEST_BYTES)
    )

    for i, name in enumerate(facts):
        differs = np.any(digests_of_all[:, i] != digests_of_all[0, i], axis=-1)
        odd_processes = np.flatnonzero(differs)
        if not len(odd_processes):
            continue
        numbers = ", ".join(str(process) for process in odd_processes[:_SHOWN_PROCESSES])
        if len(odd_processes) > _SHOWN_PROCESSES:
            numbers += ", …"
        raise UserError(
            f"{name} differs between process 0 and process {numbers}; give all processes the same"
        )


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=_DIGEST_BYTES).digest()


def wait_for_verdict(error: BaseException) -> None:
    """Lets the runtime end this process, where an error may come from another one's death: it knows
    who died.

    A broken collective raises at once; the runtime finds the dead process by its heartbeat, and
    then aborts this one.
    """
    # An error of the runtime may have been wrapped on its way up.
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, jax.errors.JaxRuntimeError):
        cause = cause.__cause__ or cause.__context__

    # The runtime aborts this process while it sleeps, unless nobody has died.
    if cause is not None:
        time.sleep(2 * _heartbeat_seconds + 5)


def part(code: int) -> None:
    """Ends a process of a run that fails, at once: at a normal exit it would wait for the others to
    finish.

    Processes that fail alike part together; one that fails alone leaves the others to their
    heartbeat.
    """
    # The one barrier that does not need the devices, which may be stuck.
    from jax._src import distributed

    client = distributed.global_state.client
    assert client is not None
    sys.stdout.flush()
    sys.stderr.flush()

    # Any failure means that the others do not part now.
    with contextlib.suppress(Exception):
        client.wait_at_barrier("matta_jax/part", int(1000 * _PARTING_SECONDS))
    os._exit(code)
