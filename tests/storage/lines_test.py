"""Files that grow, on a disk and in a bucket."""

import pytest

from matta_jax import storage
from matta_jax.storage import _files, _lines


@pytest.fixture
def clock(monkeypatch):
    """The time in seconds, as a list of one number that a test moves."""
    now = [1000.0]
    monkeypatch.setattr(_lines.time, "monotonic", lambda: now[0])
    return now


def test_on_a_disk_a_line_is_there_at_once(tmp_path, clock):
    del clock
    file = storage.GrowingFile(tmp_path / "lines")
    for line in ("one", "two"):
        file.append(line)
    assert (tmp_path / "lines").read_text() == "one\ntwo\n"
    file.flush()
    assert (tmp_path / "lines").read_text() == "one\ntwo\n"


def test_in_a_bucket_lines_wait_and_none_is_lost_or_changes_its_place(gs_bucket, clock):
    path = storage.path(f"{gs_bucket}/lines")
    storage.replace_text(path, "before\n")
    file = storage.GrowingFile(path)
    seen = []
    for number in range(6):
        file.append(str(number))
        seen.append(len(storage.recover_lines(path)))
        clock[0] += 4
    # Of a line in four seconds the first, and then each third.
    assert seen == [2, 2, 2, 5, 5, 5]
    file.flush()
    assert storage.recover_lines(path) == ["before", *"012345"]


def test_who_writes_for_long_waits_for_longer(clock):
    pace = storage.Pace()
    assert pace.is_due
    with pace.writing():
        clock[0] += 3
    clock[0] += 149
    assert not pace.is_due
    clock[0] += 2
    assert pace.is_due


def test_lines_that_could_not_be_written_are_written_later(gs_bucket, clock, monkeypatch):
    path = storage.path(f"{gs_bucket}/failing")
    file = storage.GrowingFile(path)

    def fail(*_):
        raise OSError("the store is away")

    with monkeypatch.context() as patched:
        patched.setattr(_lines, "append_line", fail)
        with pytest.raises(OSError, match="away"):
            file.append("one")
    assert _lines.append_line is _files.append_line
    clock[0] += 100
    file.append("two")
    assert storage.recover_lines(path) == ["one", "two"]
