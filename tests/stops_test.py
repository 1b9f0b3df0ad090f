"""A process that is asked to stop does, whatever its main thread waits for."""

import contextlib
import importlib
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from matta_jax import stops, storage

# A mutex that is locked twice is waited for in C for ever, and no signal ends the wait.
STUCK = """
import ctypes, sys
from matta_jax import stops
mutex, library = ctypes.create_string_buffer(64), ctypes.CDLL(None)
with stops.watched(float(sys.argv[1])), stops.raised():
    library.pthread_mutex_lock(mutex)
    print("ready", flush=True)
    library.pthread_mutex_lock(mutex)
"""


def wait_for_the_wait():
    """Nothing tells from outside that the main thread has come to its second lock."""
    time.sleep(0.5)


@pytest.mark.parametrize(
    ("grace", "num_signals", "words"), [(60, 2, "a second time"), (0.2, 1, "did not answer")]
)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_that_swallows_signals_ends(grace, num_signals, words, number):
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK, str(grace)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == b"ready\n"
    wait_for_the_wait()
    for _ in range(num_signals):
        process.send_signal(number)
        # Two signals at once are one.
        time.sleep(0.2)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert words in errors.decode() and errors.count(b"\n") == 1


def test_an_answer_gives_all_the_time_that_the_end_needs():
    code = STUCK.replace('    print("ready"', '    stops.answer()\n    print("ready"')
    process = subprocess.Popen(
        [sys.executable, "-c", code, "0.2"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == b"ready\n"
    wait_for_the_wait()
    process.send_signal(signal.SIGTERM)
    time.sleep(0.8)
    assert process.poll() is None
    process.kill()
    process.communicate()


def test_a_signal_of_one_block_does_not_end_the_process_in_another():
    code = (
        "import os, signal, sys, time; from matta_jax import stops\n"
        "signal.signal(signal.SIGTERM, lambda *_: stops.answer())\n"
        "with stops.watched(0.3): os.kill(os.getpid(), signal.SIGTERM); time.sleep(0.1)\n"
        "with stops.watched(9): time.sleep(0.6)\n"
        "print('whole')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (result.returncode, result.stdout) == (0, b"whole\n"), result.stderr


def test_a_signal_before_anything_is_done_is_a_line():
    code = "from matta_jax import stops; stops.end_on_signals(); print(1, flush=True); input()"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout.readline() == b"1\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130 and errors.startswith(b"error: SIGINT before")
    assert errors.count(b"\n") == 1


class Sender:
    """Asks its own process to stop when it is freed, where Python drops what a handler raises."""

    def __init__(self, number):
        self.number = number

    def __del__(self):
        os.kill(os.getpid(), self.number)
        # A handler runs between two instructions.
        time.sleep(0)


RAISED = {signal.SIGTERM: stops.Stopped, signal.SIGINT: KeyboardInterrupt}


@pytest.mark.parametrize("number", RAISED)
def test_a_signal_is_not_lost_where_python_drops_exceptions(number):
    with pytest.raises(RAISED[number]), stops.watched(), stops.raised():
        Sender(number)
        time.sleep(5)
    assert stops.asked() == number


@pytest.mark.parametrize("number", RAISED)
def test_an_import_ends_before_its_signal_is_raised(number, tmp_path, monkeypatch):
    name = f"import_in_which_{number.name.lower()}_comes"
    (tmp_path / f"{name}.py").write_text(
        f"import os, time; os.kill(os.getpid(), {number:d}); time.sleep(0.01); whole = True"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RAISED[number]), stops.watched(), stops.raised():
        importlib.import_module(name)
        time.sleep(5)
    assert sys.modules[name].whole


@pytest.mark.parametrize("half_written", [False, True])
def test_a_binary_ends_within_an_import_unless_it_leaves_something(
    half_written, tmp_path, monkeypatch
):
    def end(number, reason):
        raise ValueError(reason)

    monkeypatch.setattr(stops, "_is_program", True)
    monkeypatch.setattr(stops, "_end", end)
    # As of a frame of an import.
    monkeypatch.setattr(stops, "_IMPORT", __file__)
    monkeypatch.setattr(stops, "_resend", lambda number: None)
    block = storage.new_file(tmp_path / "a") if half_written else contextlib.nullcontext(tmp_path)
    with block as beside:
        beside.with_name("a.tmp").touch()
        with contextlib.nullcontext() if half_written else pytest.raises(ValueError, match="SIGT"):
            stops._raise_or_resend(signal.SIGTERM, sys._getframe())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_exception_that_python_drops_is_raised_again(monkeypatch):
    # As if the interpreter called other code by itself, too.
    monkeypatch.setattr(stops, "_UNRAISABLE", set())
    with pytest.raises(stops.Stopped), stops.watched(), stops.raised():
        Sender(signal.SIGTERM)
        time.sleep(5)


def test_a_block_without_a_signal_tells_of_none():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with stops.raised():
        pass
    assert stops.asked() is None
    assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))


def test_binaries_hear_of_signals_before_they_import_anything():
    source = (pathlib.Path(stops.__file__).parent / "bin" / "__init__.py").read_text()
    assert source.index("stops.end_on_signals()") < source.index("from matta_jax.bin")


def test_what_was_remembered_is_raised_before_more_work(monkeypatch):
    stops.remember(False)
    stops.raise_remembered()
    stops.remember()
    with pytest.raises(stops.Stopped):
        stops.raise_remembered()
    stops.remember(False)


@pytest.mark.parametrize("number", RAISED)
def test_a_signal_waits_for_what_is_being_written(number):
    is_written = False
    with pytest.raises(RAISED[number]), stops.watched(0.05), stops.raised():
        with stops.held():
            os.kill(os.getpid(), number)
            time.sleep(0.12)
            is_written = True
        time.sleep(5)
    assert is_written
