"""Several processes that are one run: how they find each other, agree, and part."""

import contextlib
import hashlib
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

import jax
import numpy as np
from jax.experimental import multihost_utils

from matta_jax.errors import UserError

T = TypeVar("T")

# How long a process that fails waits for the others to fail alike.
_PARTING_SECONDS = 3.0
# How long process 0 stays after that: it answers the others, and one without an answer is aborted.
_ANSWER_SECONDS = 0.5
# How long a process waits for the others before the first exchange. One that dies ends it sooner.
_MEETING_SECONDS = 3600.0
# How long a process looks for what another wrote, and how often.
_SEEN_SECONDS = 40.0
_LOOK_SECONDS = 2.0
# How many characters of a runtime's error, and how many processes, a message shows.
_SHOWN_CHARACTERS = 200
_SHOWN_PROCESSES = 8
_DIGEST_BYTES = 8

# How errors of Gloo (CPUs) and NCCL (GPUs) begin, after the kind of the error.
_CONNECTION = re.compile(r"\w+: (Gloo|NCCL) ")

# What this process joined with.
_heartbeat_seconds = 0
_has_met = False


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
    flags = _gathered(np.array(flag))
    return bool(np.any(flags))


def together(check: Callable[[], T]) -> T:
    """Runs a check on every process, and returns its own result; where one process fails, all do.

    A scheduler starts a run again whose processes end by different codes, and a mistake is there
    again.

    Raises:
      UserError: that of the check, or a line that names the processes on which it failed.
    """
    error = None
    result = None
    try:
        result = check()
    except UserError as raised:
        error = raised
    failed = [0] * (error is not None)
    if jax.process_count() > 1:
        verdicts = _gathered(np.array(error is not None))
        failed = np.flatnonzero(verdicts).tolist()
    if error is not None:
        raise error
    if failed:
        raise UserError(
            f"process {_listed(failed)} of this run found a mistake, which its own output tells; "
            "mend that"
        )
    return cast(T, result)


def check_shared(workdir: str, read: Callable[[], str]) -> None:
    """Raises UserError where a process does not see in a workdir what the first one wrote there,
    however long it looks: file systems of networks remember for a while that a file is missing.

    Args:
      workdir: for the error.
      read: reads what the first process wrote.
    """
    odd_processes = _odd_processes([read()])[0]
    deadline = time.monotonic() + _SEEN_SECONDS
    # Each process has the same answer, so that all ask again or none.
    while odd_processes and not any_process(time.monotonic() > deadline):
        time.sleep(_LOOK_SECONDS)
        odd_processes = _odd_processes([read()])[0]
    if odd_processes:
        raise UserError(
            f"workdir={workdir!r} is not one folder for all processes: process "
            f"{_listed(odd_processes)} does not see what process 0 wrote there; name a folder, or "
            "an address such as gs://BUCKET/…, that all of them see"
        )


def check_agreement(facts: Mapping[str, str]) -> None:
    """Compares what every process must see alike. Raises UserError that names the first fact that
    differs.
    """
    for name, odd_processes in zip(facts, _odd_processes(list(facts.values())), strict=True):
        if odd_processes:
            raise UserError(
                f"{name} differs between process 0 and process {_listed(odd_processes)}; give all "
                "processes the same"
            )


def _gathered(array: np.ndarray) -> np.ndarray:
    """The arrays of all processes, in their order, on each of them."""
    global _has_met
    client = _client()
    if client is not None and not _has_met:
        # Gloo gives up where a process comes 30 s after another, as on a machine under load.
        client.wait_at_barrier("matta_jax/meet", int(1000 * _MEETING_SECONDS))
        _has_met = True
    return np.asarray(multihost_utils.process_allgather(array))


def _odd_processes(texts: Sequence[str]) -> list[list[int]]:
    """The processes on which each text is not that of process 0."""
    if jax.process_count() == 1:
        return [[] for _ in texts]
    # Digests have one length on every process, which a gather needs.
    digests = b"".join(_digest(text) for text in texts)
    digests_of_all = _gathered(np.frombuffer(digests, np.uint8).reshape(len(texts), _DIGEST_BYTES))
    differs = np.any(digests_of_all != digests_of_all[0], axis=-1)
    return [np.flatnonzero(differs[:, i]).tolist() for i in range(len(texts))]


def _listed(processes: Sequence[int]) -> str:
    numbers = ", ".join(str(process) for process in processes[:_SHOWN_PROCESSES])
    return f"{numbers}, …" if len(processes) > _SHOWN_PROCESSES else numbers


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=_DIGEST_BYTES).digest()


def wait_for_verdict(error: BaseException) -> None:
    """Lets the runtime end this process, where an error may come from another one's death: it knows
    who died.

    A broken collective raises at once; the runtime finds the dead process by its heartbeat, and
    then aborts this one.
    """
    # The runtime aborts this process while it sleeps, unless nobody has died.
    if _runtime_error(error) is not None:
        time.sleep(2 * _heartbeat_seconds + 5)


def is_connection_error(error: BaseException) -> bool:
    """Whether an error is of the library by which processes exchange arrays: one could not be
    reached in time.
    """
    return bool(_CONNECTION.match(str(_runtime_error(error))))


def _runtime_error(error: BaseException) -> BaseException | None:
    """The runtime's error, which may have been wrapped on its way up; None without."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, jax.errors.JaxRuntimeError):
        cause = cause.__cause__ or cause.__context__
    return cause


def part(code: int) -> None:
    """Ends a process of a run that fails, at once: at a normal exit it would wait for the others to
    finish.

    Processes that fail alike part together; one that fails alone leaves the others to their
    heartbeat.
    """
    client = _client()
    assert client is not None
    sys.stdout.flush()
    sys.stderr.flush()

    # Any failure means that the others do not part now.
    with contextlib.suppress(Exception):
        client.wait_at_barrier("matta_jax/part", int(1000 * _PARTING_SECONDS))
        time.sleep(_ANSWER_SECONDS * (jax.process_index() == 0))
    os._exit(code)


def _client() -> Any:
    """That of the runtime, whose barriers need no devices, which may be stuck; None where the
    processes found each other without it.
    """
    from jax._src import distributed

    return distributed.global_state.client
