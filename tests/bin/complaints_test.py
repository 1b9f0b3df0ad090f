import logging
import sys
import threading

import pytest
from absl import logging as absl_logging

from matta_jax.bin._complaints import complaints_held


def complain():
    """All that a library may do: log an error, and fail in a thread and where nobody catches."""
    absl_logging.get_absl_handler().handle(record("/site-packages/orbax/future.py"))
    thread = threading.Thread(target=lambda: 1 // 0)
    thread.start()
    thread.join()
    sys.excepthook(OSError, OSError("of C++"), None)


def record(path, level=logging.ERROR):
    return logging.LogRecord("absl", level, path, 1, f"of {path}", (), None)


@pytest.fixture(autouse=True)
def absl_handler():
    handler = absl_logging.get_absl_handler()
    logging.getLogger().addHandler(handler)
    yield
    logging.getLogger().removeHandler(handler)


def test_complaints_are_dropped_where_a_line_has_told_what_is_wrong(capfd):
    with pytest.raises(SystemExit), complaints_held():
        complain()
        print("error: the line", file=sys.stderr)
        sys.exit(2)
    assert capfd.readouterr().err == "error: the line\n"


def test_complaints_are_told_at_an_end_without_a_line(capfd):
    hooks = sys.excepthook, sys.unraisablehook, threading.excepthook
    with complaints_held():
        complain()
        assert not capfd.readouterr().err
    told = capfd.readouterr().err
    assert "orbax/future.py" in told and "ZeroDivisionError" in told and "OSError: of C++" in told
    assert hooks == (sys.excepthook, sys.unraisablehook, threading.excepthook)


@pytest.mark.parametrize(
    ("path", "level"),
    [("/x/matta_jax/training/_meter.py", logging.ERROR), ("/x/orbax/y.py", logging.WARNING)],
)
def test_warnings_and_what_is_ours_pass(path, level):
    with complaints_held() as complaints:
        assert complaints.filter(record(path, level))
