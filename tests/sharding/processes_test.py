"""What processes tell each other, with the other processes played by the test."""

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from matta_jax.errors import UserError
from matta_jax.sharding import (
    _processes,
    any_process,
    check_agreement,
    check_shared,
    is_connection_error,
    is_first,
    join_processes,
    together,
    wait_for_all,
)


@pytest.fixture
def gathered(monkeypatch):
    """`gathered(change, processes)`: each process sees what this one has, after `change(array,
    process)`.
    """

    def play(change, processes):
        def process_allgather(array):
            return np.stack([change(array.copy(), process) for process in range(processes)])

        monkeypatch.setattr(jax, "process_count", lambda: processes)
        monkeypatch.setattr(_processes, "_has_met", True)
        monkeypatch.setattr(multihost_utils, "process_allgather", process_allgather)

    return play


def test_a_process_by_itself_agrees_and_waits_for_nobody():
    assert is_first()
    wait_for_all("here")
    check_agreement({"config": "a"})
    assert any_process(True) and not any_process(False)


def test_processes_meet_before_their_first_exchange(monkeypatch):
    class Client:
        def wait_at_barrier(self, name, milliseconds):
            order.append(name)

    def process_allgather(array):
        order.append("gathered")
        return array[None]

    order = []
    monkeypatch.setattr(_processes, "_has_met", False)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(_processes, "_client", Client)
    monkeypatch.setattr(multihost_utils, "process_allgather", process_allgather)
    any_process(False)
    any_process(False)
    assert order == ["matta_jax/meet", "gathered", "gathered"]


def test_an_error_of_a_connection_is_told_from_others():
    gloo = jax.errors.JaxRuntimeError(
        "UNKNOWN: Gloo context initialization failed: DEADLINE_EXCEEDED: GetKeyValue() timed out"
    )
    wrapped = ValueError("no checkpoint")
    wrapped.__cause__ = gloo
    assert is_connection_error(gloo) and is_connection_error(wrapped)
    others = (ValueError("INTERNAL: Gloo "), jax.errors.JaxRuntimeError("INTERNAL: a Gloo "))
    assert not any(map(is_connection_error, others))


def test_a_flag_of_any_process_is_seen_by_all(gathered):
    gathered(lambda flag, process: flag | (process == 2), 3)
    assert any_process(False)
    gathered(lambda flag, process: flag, 3)
    assert not any_process(False)


def test_a_check_that_fails_on_one_process_fails_on_all(gathered):
    def fail():
        raise UserError("data.source='x' is missing")

    assert together(lambda: 5) == 5
    gathered(lambda flag, process: flag, 3)
    assert together(lambda: 5) == 5
    with pytest.raises(UserError, match="data.source='x' is missing"):
        together(fail)
    gathered(lambda flag, process: flag | (process in (1, 2)), 3)
    with pytest.raises(UserError, match="process 1, 2 of this run found a mistake, which its own"):
        together(lambda: 5)


def test_a_workdir_that_a_process_does_not_see_is_named_after_a_while(gathered, monkeypatch):
    monkeypatch.setattr(_processes, "_SEEN_SECONDS", 0.1)
    monkeypatch.setattr(_processes, "_LOOK_SECONDS", 0.01)
    check_shared("w", lambda: "a")
    gathered(lambda digests, process: digests, 3)
    check_shared("w", lambda: "a")
    seen_after = iter(range(100))

    def late(digests, process):
        is_late = process == 2 and digests.dtype == np.uint8 and next(seen_after) < 3
        return digests + np.uint8(1) if is_late else digests

    gathered(late, 3)
    check_shared("w", lambda: "a")
    gathered(lambda digests, process: digests ^ digests.dtype.type(process == 2), 3)
    with pytest.raises(UserError, match="workdir='w' is not one folder for all .*: process 2 does"):
        check_shared("w", lambda: "a")


def test_the_first_fact_that_differs_is_named_with_its_processes(gathered):
    facts = {"the config": "a", "the data": "b"}
    gathered(lambda digests, process: digests, 12)
    check_agreement(facts)

    def change(digests, process):
        if process in (1, 4):
            digests[1] += 1
        return digests

    gathered(change, 12)
    with pytest.raises(UserError, match="the data differs between process 0 and process 1, 4; "):
        check_agreement(facts)

    gathered(lambda digests, process: digests + np.uint8(process > 0), 12)
    words = "the config differs between process 0 and process 1, 2, 3, 4, 5, 6, 7, 8, …; "
    with pytest.raises(UserError, match=words):
        check_agreement(facts)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"coordinator": "here"}, "--coordinator='here' must be HOST:PORT of process 0"),
        (
            {"num_processes": 2, "process_id": 2},
            r"--process_id=2 must be from 0 to 1 \(--num_processes - 1\)",
        ),
    ],
)
def test_what_a_user_gets_wrong_is_named_before_processes_join(fields, words):
    with pytest.raises(UserError, match=words):
        join_processes(**fields)


def test_processes_that_do_not_find_each_other_are_told_what_to_give(monkeypatch):
    def initialize(*stated, **options):
        assert stated == ("10.0.0.1:1234", 2, None)
        assert options["cluster_detection_method"] is None
        raise RuntimeError("nobody \n there")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    words = r"cannot join the other processes \(RuntimeError: nobody there\); on Cloud TPU"
    with pytest.raises(UserError, match=words):
        join_processes(coordinator="10.0.0.1:1234", num_processes=2)
