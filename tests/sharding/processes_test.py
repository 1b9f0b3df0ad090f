"""What processes tell each other, with the other processes played by the test."""

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

from matta_jax.errors import UserError
from matta_jax.sharding import any_process, check_agreement, is_first, join_processes, wait_for_all


@pytest.fixture
def gathered(monkeypatch):
    """`gathered(change, processes)`: each process sees what this one has, after `change(array,
    process)`.
    """

    def play(change, processes):
        def process_allgather(array):
            return np.stack([change(array.copy(), process) for process in range(processes)])

        monkeypatch.setattr(jax, "process_count", lambda: processes)
        monkeypatch.setattr(multihost_utils, "process_allgather", process_allgather)

    return play


def test_a_process_by_itself_agrees_and_waits_for_nobody():
    assert is_first()
    wait_for_all("here")
    check_agreement({"config": "a"})
    assert any_process(True) and not any_process(False)


def test_a_flag_of_any_process_is_seen_by_all(gathered):
    gathered(lambda flag, process: flag | (process == 2), 3)
    assert any_process(False)
    gathered(lambda flag, process: flag, 3)
    assert not any_process(False)


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
