"""A process that is asked to stop does, whatever its main thread waits for."""

import signal
import subprocess
import sys
import time

import pytest

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
