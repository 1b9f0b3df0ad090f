"""Progress shows where there is no terminal, and no work depends on it."""

import io
import pathlib
import sys

import pytest

from matta_jax import reporting

PACKAGE = pathlib.Path(__file__).parents[1] / "matta_jax"


class Clock:
    """Seconds that pass when an item is worked on."""

    def __init__(self):
        self.seconds = 100.0

    def __call__(self):
        return self.seconds


def lines_of(capsys, items, *, seconds, **fields):
    clock = Clock()
    yielded = []
    for item in reporting.progress(items, clock=clock, **fields):
        clock.seconds += seconds
        yielded.append(item)
    out, err = capsys.readouterr()
    assert out == "" and yielded == list(range(len(yielded)))
    return err.splitlines()


def test_a_known_end_is_told_every_ten_seconds(capsys):
    lines = lines_of(capsys, range(10), seconds=4.0, desc="scoring ta", unit="batches")
    assert lines == [
        "scoring ta: 3 of 10 batches, ETA 0:28",
        "scoring ta: 6 of 10 batches, ETA 0:16",
        "scoring ta: 9 of 10 batches, ETA 0:04",
    ]


def test_without_an_end_the_rate_is_told(capsys):
    items = iter(range(1201))
    lines = lines_of(capsys, items, seconds=0.01, desc="tokenising a", unit="documents")
    assert lines == ["tokenising a: 1,000 documents, 100/s"]


def test_a_total_may_be_given(capsys):
    lines = lines_of(capsys, iter(range(2)), seconds=3600.0, desc="a", unit="files", total=1000)
    assert lines == ["a: 1 of 1,000 files, ETA 999:00:00", "a: 2 of 1,000 files, ETA 998:00:00"]


@pytest.mark.parametrize("items", [range(0), range(9)])
def test_what_ends_before_says_nothing(capsys, items):
    assert lines_of(capsys, items, seconds=1.0, desc="a", unit="files") == []


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_has_a_bar(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    items = reporting.progress(range(3), desc="scoring", unit="batches", delay=0.0)
    assert list(items) == [0, 1, 2]
    assert "scoring: 100%" in terminal.getvalue() and "3/3" in terminal.getvalue()


class Closed(io.StringIO):
    def write(self, text):
        raise BrokenPipeError


@pytest.mark.parametrize("stderr", [None, Closed()])
def test_work_goes_on_where_nothing_can_be_said(monkeypatch, stderr):
    monkeypatch.setattr(sys, "stderr", stderr)
    clock = Clock()
    for _ in reporting.progress(range(3), desc="a", unit="b", clock=clock):
        clock.seconds += 20.0


@pytest.mark.parametrize(
    ("module", "lines"),
    [(None, ["no pictures: pip install 'matta_jax[plots]'"]), ("there", [])],
)
def test_missing_plots_are_told(monkeypatch, module, lines):
    if module is None:
        monkeypatch.setitem(sys.modules, "matplotlib", None)
    said = []
    reporting.say_without_pictures(said.append)
    assert said == lines


def test_progress_has_one_way():
    users = [path.name for path in PACKAGE.rglob("*.py") if "import tqdm" in path.read_text()]
    assert users == ["reporting.py"]
