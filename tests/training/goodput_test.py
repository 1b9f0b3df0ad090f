"""Where a run's time went: it adds up, over a kill too, and each cause is told from the others."""

import contextlib
import itertools
import json
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from matta_jax import stops, train
from matta_jax.training import _loop, _prepare, _run
from matta_jax.training._goodput import CAUSES, Ledger, StepEnds, time_line


class Clock:
    """Seconds that a test sets."""

    def __init__(self, now=0.0):
        self.now = now

    def __call__(self):
        return self.now


def ledger_at(clock, started=None):
    """A ledger whose time of day is 1,000 seconds more than its clock."""
    return Ledger(started, clock=clock, time_of_day=lambda: 1000 + clock.now)


def seconds_of(row):
    """Seconds by cause."""
    return {cause: row[f"seconds/{cause}"] for cause in CAUSES}


MOMENTS = st.tuples(st.sampled_from(CAUSES), st.floats(0, 100), st.none() | st.floats(0, 1))


@given(st.lists(MOMENTS))
def test_the_causes_add_up_to_the_wall_time_whatever_is_entered(moments):
    clock = Clock(5.0)
    ledger = ledger_at(clock, started=2.0)
    for cause, seconds, share in moments:
        before = clock.now
        clock.now += seconds
        if share is None:
            ledger.enter(cause)
        else:
            # Of a wait, the part in which devices had nothing to do.
            ledger.enter("step", at=before)
            ledger.charge(cause, before + share * seconds)
    row = ledger.row()
    assert sum(seconds_of(row).values()) == pytest.approx(clock.now - 2.0)
    assert row["goodput"] * (clock.now - 2.0) == pytest.approx(row["seconds/step"])
    assert min(seconds_of(row).values()) >= 0


def killed_rows():
    """The lines of a process that starts at 1,000, saves step 10, and tells of step 15 last."""
    clock = Clock()
    ledger = ledger_at(clock)
    rows = []
    for cause, end, step in (
        ("start", 20, None),
        ("compile", 30, None),
        ("step", 80, 10),
        ("checkpoint", 84, 10),
        ("step", 109, 15),
    ):
        ledger.enter(cause)
        clock.now = float(end)
        if step is not None:
            rows.append({"step": step, "loss": 1.0} | ledger.row())
    return rows


def test_steps_that_a_kill_took_back_are_lost():
    rows = killed_rows()
    clock = Clock(140.0)
    ledger = ledger_at(clock, started=130.0)
    ledger.go_on([{"step": 0, "data/near_duplicates": 4}, *rows], 10)
    row = ledger.row()
    expected = {"start": 30, "compile": 10, "step": 50, "checkpoint": 4, "redone": 25, "down": 21}
    assert seconds_of(row) == dict.fromkeys(CAUSES, 0) | expected
    assert sum(seconds_of(row).values()) == 140
    # Killed again, before it saved anything: the line of step 10 is dropped, and comes again.
    again = ledger_at(Clock(160.0), started=150.0)
    again.go_on([*rows[:2], {"step": 10} | row], 0)
    assert again.row()["seconds/step"] == 0 and again.row()["seconds/redone"] == 75
    assert sum(seconds_of(again.row()).values()) == 160


def test_the_time_after_a_run_that_ended_by_itself_is_no_loss():
    rows = killed_rows()
    rows[-1]["ended"] = 1
    ledger = ledger_at(Clock(99_999.0))
    ledger.go_on(rows, 15)
    assert ledger.row()["seconds/down"] == 0 and ledger.row()["seconds/redone"] == 0
    assert sum(seconds_of(ledger.row()).values()) == 109


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"step": 3, "loss": 1.0}],
        [{"step": 3, "seconds/step": "1", "time": None}],
        [{"step": 3, "time": 1.0} | {f"seconds/{cause}": -1.0 for cause in CAUSES}],
        [{"step": 3, "time": 1.0} | {f"seconds/{cause}": 1e300 for cause in CAUSES}],
    ],
)
def test_lines_that_tell_no_time_are_passed_over(rows):
    ledger = ledger_at(Clock(9.0))
    ledger.go_on(rows, 3)
    assert sum(seconds_of(ledger.row()).values()) == 0


def test_the_line_for_people_names_the_largest_loss_first():
    row = killed_rows()[-1]
    assert time_line(row) == "goodput 69% of 0:01:49 (start 18%, compile 9%, checkpoint 4%)"


class Work:
    """What a device returns: ready when a test says so."""

    def __init__(self):
        self.done = threading.Event()

    def block_until_ready(self):
        assert self.done.wait(60)


def wait_until(condition):
    """Waits for the thread that watches."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_a_wait_is_lost_from_when_the_devices_are_done():
    clock, first, second = Clock(), Work(), Work()
    ends = StepEnds(clock)
    with ends.watched():
        assert ends.idle_since(3.0) == 3.0  # Before any step.
        ends.follow({"loss": first})
        ends.follow({"loss": second})
        assert ends.idle_since(4.0) is None
        first.done.set()
        assert ends.idle_since(5.0) is None
        clock.now = 7.0
        second.done.set()
        wait_until(lambda: ends.idle_since(5.0) is not None)
        assert ends.idle_since(5.0) == 7.0 and ends.idle_since(8.0) == 8.0


def rows_of(workdir):
    """The lines that tell of time."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "goodput" in row]


def assert_adds_up(rows):
    """Between any two lines of a run passes what its causes say, and so since its start."""
    for before, after in itertools.pairwise(rows):
        told = sum(seconds_of(after).values()) - sum(seconds_of(before).values())
        assert told == pytest.approx(after["time"] - before["time"], abs=0.02)


def test_a_run_tells_where_its_time_went(run):
    _, workdir, lines = run
    rows = rows_of(workdir)
    assert_adds_up(rows)
    last = seconds_of(rows[-1])
    for cause in ("step", "compile", "evaluation", "checkpoint", "start"):
        assert last[cause] > 0, cause
    assert last["redone"] == last["down"] == 0
    # The loop waits at each save, and not for the last one alone.
    saved = [seconds_of(row) for row in rows if row["step"] == 3]
    assert saved[0]["checkpoint"] == 0 < saved[-1]["checkpoint"] < last["checkpoint"]
    assert rows[-1]["step"] == 6 and [row.get("ended") for row in rows[-2:]] == [None, 1]
    assert any(line.startswith(f"goodput {rows[-1]['goodput']:.0%} of 0:") for line in lines)
    # To start a finished run again is no part of it.
    train(run[0], workdir, log=lines.append)
    assert rows_of(workdir) == rows


class Killed(Exception):
    """As of a kill: nothing more is written."""


def kill_at_5(line):
    """Ends a run with the line of its fifth step."""
    if line.startswith("step 5"):
        raise Killed


@pytest.mark.slow
def test_a_run_that_was_killed_counts_what_it_did_twice(tiny, tmp_path):
    workdir = tmp_path / "run"
    began = time.time()
    with pytest.raises(Killed):
        train(tiny(), workdir, log=kill_at_5)
    first = rows_of(workdir)
    time.sleep(0.5)
    train(tiny(), workdir, log=lambda line: None)

    rows = rows_of(workdir)
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 3, 3, 4, 5, 6, 6]
    assert_adds_up(rows[:5])
    assert_adds_up(rows[5:])
    saved, resumed = seconds_of(rows[4]), seconds_of(rows[5])
    killed = seconds_of(first[-1])
    assert resumed["step"] == pytest.approx(saved["step"])
    assert resumed["redone"] == pytest.approx(killed["step"] - saved["step"]) and killed["step"] > 0
    assert resumed["down"] >= 0.5 and resumed["start"] > saved["start"]
    # From the first start, whichever process told.
    last = rows[-1]
    assert sum(seconds_of(last).values()) == pytest.approx(last["time"] - began, abs=0.1)


@pytest.mark.parametrize("number", [KeyboardInterrupt, stops.Stopped])
def test_a_process_that_a_signal_ends_in_its_start_ends_by_itself(
    tiny, tmp_path, monkeypatch, number
):
    def interrupted(*arguments):
        raise number

    monkeypatch.setattr(_loop, "make_run", interrupted)
    with pytest.raises(number):
        train(tiny(), tmp_path / "run", log=lambda line: None)
    rows = rows_of(tmp_path / "run")
    assert [row.get("ended") for row in rows if "goodput" in row] == [None, 1]


@pytest.mark.slow
def test_devices_without_work_wait_for_data(tiny, tmp_path, monkeypatch):
    real = _prepare.training_batches

    @contextlib.contextmanager
    def slow(windows, **options):
        with real(windows, **options) as batches:

            def late():
                for batch in batches:
                    time.sleep(0.4)
                    yield batch

            yield late()

    monkeypatch.setattr(_prepare, "training_batches", slow)
    train(tiny(), tmp_path / "run", log=lambda line: None)
    rows = rows_of(tmp_path / "run")
    assert_adds_up(rows)
    # The first batch is of the start; the five after it come 0.4 s after they are asked for, and a
    # step takes far less.
    assert 1.0 < rows[-1]["seconds/data"] < 2.4
    assert rows[-1]["seconds/start"] > 0.4


@pytest.mark.slow
def test_what_is_told_on_the_way_is_evaluation(tiny, tmp_path, monkeypatch):
    def cosines(params, batch):
        time.sleep(0.3)
        return {"cosine/student": 1.0}

    monkeypatch.setattr(_run, "make_cosines", lambda setup: cosines)
    train(tiny(train__cosine_every=1), tmp_path / "run", log=lambda line: None)
    rows = rows_of(tmp_path / "run")
    # The line of a step comes after the next one began: two of them were compared by then.
    start, *steps = rows
    assert start["step"] == start["seconds/evaluation"] == 0
    assert [row["step"] for row in steps[:2]] == [1, 2]
    assert 0.3 <= steps[0]["seconds/evaluation"] < 0.6 <= steps[1]["seconds/evaluation"] < 0.9
    assert_adds_up(rows)
